// SPDX-License-Identifier: BSD-3-Clause
//! Lists that nbdkit lends us to be filled, and strings that it keeps for us.

use std::ffi::{CStr, CString, c_char};
use std::ptr::NonNull;

use super::sys;
use crate::proto::consts::Allocation;

/// The extents of one status query, to be filled in ascending order.
#[derive(Debug)]
pub struct Extents {
    list: NonNull<sys::nbdkit_extents>,
}

impl Extents {
    /// Wraps nbdkit's list.
    ///
    /// # Safety
    /// `list` is null or the list that nbdkit passed to the callback that is running, and the
    /// result does not outlive that callback.
    pub unsafe fn new(list: *mut sys::nbdkit_extents) -> Option<Self> {
        NonNull::new(list).map(|list| Self { list })
    }

    /// Appends an extent. False if nbdkit refused it, with its own message.
    #[must_use]
    pub fn add(&mut self, offset: u64, length: u64, status: Allocation) -> bool {
        // NBDKIT_EXTENT_* have the values of the protocol's base:allocation bits.
        // SAFETY: by the contract of `new` the list is alive, and ours for the callback's duration.
        unsafe { sys::nbdkit_add_extent(self.list.as_ptr(), offset, length, status.bits()) == 0 }
    }
}

const _: () = assert!(sys::NBDKIT_EXTENT_HOLE == Allocation::HOLE.bits());
const _: () = assert!(sys::NBDKIT_EXTENT_ZERO == Allocation::ZERO.bits());

/// The list of exports for one client.
#[derive(Debug)]
pub struct Exports {
    list: NonNull<sys::nbdkit_exports>,
}

impl Exports {
    /// Wraps nbdkit's list.
    ///
    /// # Safety
    /// As for [`Extents::new`].
    pub unsafe fn new(list: *mut sys::nbdkit_exports) -> Option<Self> {
        NonNull::new(list).map(|list| Self { list })
    }

    /// Appends an export. False if nbdkit refused it, with its own message.
    #[must_use]
    pub fn add(&mut self, name: &[u8], description: &str) -> bool {
        let (Ok(name), Ok(description)) = (CString::new(name), CString::new(description)) else {
            return false;
        };
        let text = if description.is_empty() {
            std::ptr::null()
        } else {
            description.as_ptr()
        };
        // SAFETY: by the contract of `new` the list is alive, and ours for the callback's duration;
        // nbdkit copies the strings.
        unsafe { sys::nbdkit_add_export(self.list.as_ptr(), name.as_ptr(), text) == 0 }
    }

    /// Lists what `default_export` answers. False if nbdkit refused it, with its own message.
    #[must_use]
    pub fn add_default(&mut self) -> bool {
        // SAFETY: by the contract of `new` the list is alive.
        unsafe { sys::nbdkit_use_default_export(self.list.as_ptr()) == 0 }
    }
}

/// The name of the export that the client of the running callback asks for. `None` if nbdkit
/// knows none, with its own message.
pub fn export_name() -> Option<Vec<u8>> {
    // SAFETY: reads a thread-local of nbdkit's.
    let name = unsafe { sys::nbdkit_export_name() };
    if name.is_null() {
        return None;
    }
    // SAFETY: not null, so a terminated string that lives as long as the client's connection.
    Some(unsafe { CStr::from_ptr(name) }.to_bytes().to_vec())
}

/// Gives a string to nbdkit, which keeps it until the connection of the running callback ends.
/// Null where there is no memory for it.
pub fn intern(text: impl AsRef<[u8]>) -> *const c_char {
    let Ok(text) = CString::new(text.as_ref()) else {
        return std::ptr::null();
    };
    // SAFETY: a terminated string, which nbdkit copies.
    unsafe { sys::nbdkit_strdup_intern(text.as_ptr()) }
}
