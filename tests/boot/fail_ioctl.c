// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

// Loaded before the C library, this has every ioctl fail whose type and number are FAIL_IOCTL.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>

int ioctl(int fd, unsigned long request, ...)
{
    int (*next)(int, unsigned long, ...) = dlsym(RTLD_NEXT, "ioctl");
    const char *failing = getenv("FAIL_IOCTL");
    va_list arguments;
    void *argument;

    va_start(arguments, request);
    argument = va_arg(arguments, void *);
    va_end(arguments);
    if (failing && (request & 0xffff) == strtoul(failing, NULL, 16)) {
        errno = EPROTO;
        return -1;
    }
    return next(fd, request, argument);
}
