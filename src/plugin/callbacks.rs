// SPDX-License-Identifier: BSD-3-Clause
//! One function for each callback of nbdkit's: guard, borrow, call safe code, convert.
//!
//! Numbers in SAFETY notes are those of the host contract in `plugin/mod.rs`.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::null;
use std::sync::atomic::Ordering;

use super::export::{self, Handle};
use super::guard::{Failure, guard, install_panic_hook};
use super::{nbd_debug_verbose, state};
use crate::client::Zeroing;
use crate::config;
use crate::host::lists::{Exports, Extents, intern};
use crate::host::{params, report, sys};
use crate::proto::consts::TransmissionFlags;

/// Borrows the handle that `open` made.
///
/// # Safety
/// `handle` came from [`open`] and was not given to [`close`] yet (contract 4).
unsafe fn borrow<'a>(handle: *mut c_void) -> &'a Handle {
    // SAFETY: the caller's promise; only shared references are ever made (contract 5).
    unsafe { &*handle.cast::<Handle>() }
}

/// Answers a yes-or-no question about an export.
///
/// # Safety
/// As for [`borrow`].
unsafe fn ask(
    callback: &'static str,
    handle: *mut c_void,
    question: impl FnOnce(&Handle) -> bool,
) -> c_int {
    guard(callback, || {
        // SAFETY: passed on.
        let handle = unsafe { borrow(handle) };
        Ok(c_int::from(question(handle)))
    })
}

/// Carries out a request without payload.
///
/// # Safety
/// As for [`borrow`].
unsafe fn perform(
    callback: &'static str,
    handle: *mut c_void,
    request: impl FnOnce(&Handle) -> Result<(), Failure>,
) -> c_int {
    guard(callback, || {
        // SAFETY: passed on.
        let handle = unsafe { borrow(handle) };
        request(handle).map(|()| 0)
    })
}

fn has(flags: u32, flag: u32) -> bool {
    flags & flag != 0
}

pub extern "C" fn load() {
    guard("load", || {
        install_panic_hook();
        report::forward_log(false);
        Ok(())
    });
}

pub extern "C" fn cleanup() {
    guard("cleanup", || {
        state::disconnect();
        Ok(())
    });
}

pub extern "C" fn unload() {
    guard("unload", || {
        state::clear();
        Ok(())
    });
}

pub unsafe extern "C" fn config(key: *const c_char, value: *const c_char) -> c_int {
    guard("config", || {
        // SAFETY: contract 2: a terminated string that outlives the call.
        let key = unsafe { CStr::from_ptr(key) };
        // SAFETY: likewise.
        let value = unsafe { CStr::from_ptr(value) };
        let key = key.to_string_lossy();
        if config::is_path(&key, value.to_bytes()) && !value.is_empty() {
            let path = params::absolute_path(value).ok_or_else(Failure::by_host)?;
            state::set(&key, path.as_os_str().as_encoded_bytes())?;
        } else if config::is_password(&key) {
            config::check_password_file(value.to_bytes())?;
            let password = params::password(value).ok_or_else(Failure::by_host)?;
            state::set(&key, &password)?;
        } else {
            state::set(&key, value.to_bytes())?;
        }
        Ok(0)
    })
}

pub extern "C" fn config_complete() -> c_int {
    guard("config_complete", || state::freeze().map(|()| 0))
}

pub extern "C" fn get_ready() -> c_int {
    guard("get_ready", || {
        // -D flags are known by now and never change.
        report::forward_log(nbd_debug_verbose.load(Ordering::Relaxed) != 0);
        state::get_ready().map(|()| 0)
    })
}

pub extern "C" fn after_fork() -> c_int {
    guard("after_fork", || state::after_fork().map(|()| 0))
}

pub extern "C" fn dump_plugin() {
    guard("dump_plugin", || {
        // Scripts look for these to learn what there is, whatever provides it.
        const LINES: [&str; 7] = [
            // The release whose reach this has, as the library would write it.
            "libnbd_version=1.24.0",
            "libnbd_tls=1",
            "libnbd_uri=1",
            "libnbd_vsock=1",
            "libnbd_dynamic_list=1",
            concat!("nbd_client=rust/", env!("CARGO_PKG_VERSION")),
            "nbd_ssh=1",
        ];
        LINES.iter().for_each(|line| report::print(line));
        Ok(())
    });
}

pub unsafe extern "C" fn list_exports(
    _readonly: c_int,
    is_tls: c_int,
    list: *mut sys::nbdkit_exports,
) -> c_int {
    guard("list_exports", || {
        // SAFETY: contract 3: the list of this callback, and it stays in this function.
        let list = unsafe { Exports::new(list) };
        let mut list = list.ok_or_else(|| Failure::misuse("list_exports: no list"))?;
        export::list(&mut list, is_tls != 0).map(|()| 0)
    })
}

pub extern "C" fn default_export(readonly: c_int, is_tls: c_int) -> *const c_char {
    guard("default_export", || {
        export::default_export(readonly != 0, is_tls != 0)
    })
}

pub extern "C" fn open(readonly: c_int) -> *mut c_void {
    guard("open", || {
        let handle = Handle::open(readonly != 0)?;
        Ok(Box::into_raw(Box::new(handle)).cast())
    })
}

pub unsafe extern "C" fn close(handle: *mut c_void) {
    guard("close", || {
        // SAFETY: contract 4: made by `open`, given back here once, after every other callback
        // with it has returned.
        let handle = unsafe { Box::from_raw(handle.cast::<Handle>()) };
        handle.close();
        Ok(())
    });
}

pub unsafe extern "C" fn get_size(handle: *mut c_void) -> i64 {
    guard("get_size", || {
        // SAFETY: contract 4.
        let handle = unsafe { borrow(handle) };
        Ok(handle.size())
    })
}

pub unsafe extern "C" fn block_size(
    handle: *mut c_void,
    minimum: *mut u32,
    preferred: *mut u32,
    maximum: *mut u32,
) -> c_int {
    guard("block_size", || {
        // SAFETY: contract 4.
        let handle = unsafe { borrow(handle) };
        let sizes = handle.block_size();
        for (place, size) in [(minimum, sizes.0), (preferred, sizes.1), (maximum, sizes.2)] {
            // SAFETY: contract 3: valid for one write each.
            unsafe { place.write(size) };
        }
        Ok(0)
    })
}

pub unsafe extern "C" fn export_description(handle: *mut c_void) -> *const c_char {
    guard("export_description", || {
        // SAFETY: contract 4.
        let handle = unsafe { borrow(handle) };
        Ok(handle.description().map_or(null(), intern))
    })
}

pub unsafe extern "C" fn can_write(handle: *mut c_void) -> c_int {
    // SAFETY: contract 4.
    unsafe { ask("can_write", handle, Handle::can_write) }
}

pub unsafe extern "C" fn can_flush(handle: *mut c_void) -> c_int {
    // SAFETY: contract 4.
    unsafe {
        ask("can_flush", handle, |h| {
            h.has(TransmissionFlags::SEND_FLUSH)
        })
    }
}

pub unsafe extern "C" fn is_rotational(handle: *mut c_void) -> c_int {
    // SAFETY: contract 4.
    unsafe {
        ask("is_rotational", handle, |h| {
            h.has(TransmissionFlags::ROTATIONAL)
        })
    }
}

pub unsafe extern "C" fn can_trim(handle: *mut c_void) -> c_int {
    // SAFETY: contract 4.
    unsafe { ask("can_trim", handle, |h| h.has(TransmissionFlags::SEND_TRIM)) }
}

pub unsafe extern "C" fn can_zero(handle: *mut c_void) -> c_int {
    // SAFETY: contract 4.
    unsafe { ask("can_zero", handle, Handle::can_zero) }
}

pub unsafe extern "C" fn can_fast_zero(handle: *mut c_void) -> c_int {
    // SAFETY: contract 4.
    unsafe {
        ask("can_fast_zero", handle, |h| {
            h.has(TransmissionFlags::SEND_FAST_ZERO)
        })
    }
}

pub unsafe extern "C" fn can_fua(handle: *mut c_void) -> c_int {
    // SAFETY: contract 4.
    let fua = unsafe { ask("can_fua", handle, |h| h.has(TransmissionFlags::SEND_FUA)) };
    tristate(fua, sys::NBDKIT_FUA_NONE, sys::NBDKIT_FUA_NATIVE)
}

pub unsafe extern "C" fn can_cache(handle: *mut c_void) -> c_int {
    // SAFETY: contract 4.
    let cache = unsafe {
        ask("can_cache", handle, |h| {
            h.has(TransmissionFlags::SEND_CACHE)
        })
    };
    tristate(cache, sys::NBDKIT_CACHE_NONE, sys::NBDKIT_CACHE_NATIVE)
}

/// Turns a yes or no into one of the three levels of support; never the emulated one.
fn tristate(answer: c_int, none: u32, native: u32) -> c_int {
    match answer {
        0 => none as c_int,
        1 => native as c_int,
        failed => failed,
    }
}

pub unsafe extern "C" fn can_multi_conn(handle: *mut c_void) -> c_int {
    // SAFETY: contract 4.
    unsafe {
        ask("can_multi_conn", handle, |h| {
            h.has(TransmissionFlags::CAN_MULTI_CONN)
        })
    }
}

pub unsafe extern "C" fn can_extents(handle: *mut c_void) -> c_int {
    // SAFETY: contract 4.
    unsafe { ask("can_extents", handle, Handle::can_extents) }
}

pub unsafe extern "C" fn pread(
    handle: *mut c_void,
    buffer: *mut c_void,
    count: u32,
    offset: u64,
    _flags: u32,
) -> c_int {
    guard("pread", || {
        // SAFETY: contract 4.
        let handle = unsafe { borrow(handle) };
        // SAFETY: contract 3: `count` initialised bytes that are ours until we return.
        let buffer = unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), count as usize) };
        handle.read(buffer, offset).map(|()| 0)
    })
}

pub unsafe extern "C" fn pwrite(
    handle: *mut c_void,
    buffer: *const c_void,
    count: u32,
    offset: u64,
    flags: u32,
) -> c_int {
    guard("pwrite", || {
        // SAFETY: contract 4.
        let handle = unsafe { borrow(handle) };
        // SAFETY: contract 3: `count` initialised bytes that nobody changes until we return.
        let payload = unsafe { std::slice::from_raw_parts(buffer.cast::<u8>(), count as usize) };
        handle
            .write(payload, offset, has(flags, sys::NBDKIT_FLAG_FUA))
            .map(|()| 0)
    })
}

pub unsafe extern "C" fn flush(handle: *mut c_void, _flags: u32) -> c_int {
    // SAFETY: contract 4.
    unsafe { perform("flush", handle, Handle::flush) }
}

pub unsafe extern "C" fn trim(handle: *mut c_void, count: u32, offset: u64, flags: u32) -> c_int {
    let fua = has(flags, sys::NBDKIT_FLAG_FUA);
    // SAFETY: contract 4.
    unsafe { perform("trim", handle, |h| h.trim(count, offset, fua)) }
}

pub unsafe extern "C" fn zero(handle: *mut c_void, count: u32, offset: u64, flags: u32) -> c_int {
    let how = Zeroing {
        may_trim: has(flags, sys::NBDKIT_FLAG_MAY_TRIM),
        fua: has(flags, sys::NBDKIT_FLAG_FUA),
        fast: has(flags, sys::NBDKIT_FLAG_FAST_ZERO),
    };
    // SAFETY: contract 4.
    unsafe { perform("zero", handle, |h| h.zero(count, offset, how)) }
}

pub unsafe extern "C" fn cache(handle: *mut c_void, count: u32, offset: u64, _flags: u32) -> c_int {
    // SAFETY: contract 4.
    unsafe { perform("cache", handle, |h| h.cache(count, offset)) }
}

pub unsafe extern "C" fn extents(
    handle: *mut c_void,
    count: u32,
    offset: u64,
    flags: u32,
    list: *mut sys::nbdkit_extents,
) -> c_int {
    guard("extents", || {
        // SAFETY: contract 4.
        let handle = unsafe { borrow(handle) };
        // SAFETY: contract 3: the list of this callback, and it stays in this function.
        let list = unsafe { Extents::new(list) };
        let mut list = list.ok_or_else(|| Failure::misuse("extents: no list"))?;
        let one = has(flags, sys::NBDKIT_FLAG_REQ_ONE);
        handle.extents(count, offset, one, &mut list).map(|()| 0)
    })
}
