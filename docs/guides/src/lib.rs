// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The code of the guides in `docs/`: what they quote from, and, as documentation tests, what stands
//! in them whole.

#![forbid(unsafe_code)]

pub mod pci;
pub mod pipe;
pub mod qcow2;

#[cfg(doctest)]
#[doc = include_str!("../../adopting.md")]
struct Adopting;

#[cfg(doctest)]
#[doc = include_str!("../../what-a-driver-can-do-wrong.md")]
struct WhatADriverCanDoWrong;
