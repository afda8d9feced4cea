// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

// Tells Linux' driver `timeriomem_rng` where the register `rng0` is, on a kernel without device trees.

#include <linux/err.h>
#include <linux/ioport.h>
#include <linux/module.h>
#include <linux/platform_device.h>
#include <linux/timeriomem-rng.h>

static const struct resource rng0 = DEFINE_RES_MEM(0x80001000, 4);
static const struct timeriomem_rng_data data = {
	.period = 1, // microseconds
	.quality = 1024,
};
static struct platform_device *device;

static int __init board_init(void)
{
	device = platform_device_register_resndata(NULL, "timeriomem_rng", PLATFORM_DEVID_NONE,
						   &rng0, 1, &data, sizeof(data));
	return PTR_ERR_OR_ZERO(device);
}

static void __exit board_exit(void)
{
	platform_device_unregister(device);
}

module_init(board_init);
module_exit(board_exit);
MODULE_LICENSE("Dual BSD/GPL");
MODULE_DESCRIPTION("The register rng0 of mini-vmm");
