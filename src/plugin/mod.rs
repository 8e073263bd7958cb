// SPDX-License-Identifier: BSD-3-Clause
//! The plugin as nbdkit sees it: [`plugin_init`] and the table of callbacks.
//!
//! # The host contract
//!
//! What nbdkit promises a plugin of API version 2 (nbdkit-plugin(3) and the server's sources,
//! versions 1.32 to 1.48). SAFETY notes refer to these numbers.
//!
//! 1. `plugin_init` is called once, after loading with `RTLD_NOW`; the struct it returns is
//!    copied, as many bytes as both sides know, and never written.
//! 2. Strings given to `config` are terminated and live until unload. `config` to `get_ready` run
//!    on one thread, before nbdkit forks; threads may be started from `after_fork` on.
//! 3. Buffers, lists and places for results are valid from the call of a callback to its return,
//!    and nobody else touches them meanwhile. The buffer of a read is initialised memory.
//! 4. A handle is what `open` returned. `close` gets it last, once, when every other callback with
//!    it has returned. `open` failing is a null handle, which is passed to nobody.
//!    Nor is it called once nbdkit was told to end: then `cleanup` comes instead, when the threads of
//!    all clients have ended, and `unload` after it; a filter's own thread may be inside a callback
//!    all the same.
//! 5. With the thread model "parallel" callbacks run at the same time, also with one handle.
//! 6. `nbdkit_set_error` belongs to the thread that calls it; so only the callback's own thread
//!    reports its failure.
//! 7. Of error numbers only EPERM, EIO, ENOMEM, ENOSPC and ESHUTDOWN (ENOTSUP for a fast zero,
//!    EOVERFLOW for a read that must not be cut) reach the client; any other becomes EINVAL.
//! 8. `can_*`, `get_size` and `block_size` are asked once for each client and remembered.
//! 9. Offsets and lengths lie inside the size that `get_size` told, and flags are among those that
//!    `can_*` admitted.

mod callbacks;
#[forbid(unsafe_code)]
mod export;
#[forbid(unsafe_code)]
mod guard;
#[forbid(unsafe_code)]
mod places;
#[forbid(unsafe_code)]
mod probe;
#[forbid(unsafe_code)]
mod reception;
#[forbid(unsafe_code)]
mod state;
#[forbid(unsafe_code)]
mod statistics;
#[forbid(unsafe_code)]
mod upstream;

use std::ffi::c_int;
use std::mem::size_of;
use std::sync::atomic::AtomicI32;

use crate::config::help::HELP;
use crate::host::sys;

/// Set to 1 by nbdkit for `-D nbd.verbose=1`: tell of each request and reply.
#[allow(non_upper_case_globals)]
#[unsafe(no_mangle)]
pub static nbd_debug_verbose: AtomicI32 = AtomicI32::new(0);

const _: () = assert!(size_of::<AtomicI32>() == size_of::<c_int>());

/// The table, in a wrapper that may be static although it holds pointers.
struct Table(sys::nbdkit_plugin);

// SAFETY: the pointers are to constants and functions; nobody writes the table (contract 1).
unsafe impl Sync for Table {}

static TABLE: Table = Table(sys::nbdkit_plugin {
    _struct_size: size_of::<sys::nbdkit_plugin>() as u64,
    _api_version: sys::NBDKIT_API_VERSION as c_int,
    _thread_model: sys::NBDKIT_THREAD_MODEL_PARALLEL as c_int,
    name: c"nbd".as_ptr(),
    longname: c"nbdkit nbd plugin (Rust)".as_ptr(),
    version: VERSION.as_ptr(),
    description: c"forward to another NBD server".as_ptr(),
    load: Some(callbacks::load),
    unload: Some(callbacks::unload),
    config: Some(callbacks::config),
    config_complete: Some(callbacks::config_complete),
    config_help: HELP.as_ptr(),
    open: Some(callbacks::open),
    close: Some(callbacks::close),
    get_size: Some(callbacks::get_size),
    can_write: Some(callbacks::can_write),
    can_flush: Some(callbacks::can_flush),
    is_rotational: Some(callbacks::is_rotational),
    can_trim: Some(callbacks::can_trim),
    _pread_v1: None,
    _pwrite_v1: None,
    _flush_v1: None,
    _trim_v1: None,
    _zero_v1: None,
    errno_is_preserved: 1,
    dump_plugin: Some(callbacks::dump_plugin),
    can_zero: Some(callbacks::can_zero),
    can_fua: Some(callbacks::can_fua),
    pread: Some(callbacks::pread),
    pwrite: Some(callbacks::pwrite),
    flush: Some(callbacks::flush),
    trim: Some(callbacks::trim),
    zero: Some(callbacks::zero),
    magic_config_key: c"uri".as_ptr(),
    can_multi_conn: Some(callbacks::can_multi_conn),
    can_extents: Some(callbacks::can_extents),
    extents: Some(callbacks::extents),
    can_cache: Some(callbacks::can_cache),
    cache: Some(callbacks::cache),
    thread_model: None,
    can_fast_zero: Some(callbacks::can_fast_zero),
    preconnect: None,
    get_ready: Some(callbacks::get_ready),
    after_fork: Some(callbacks::after_fork),
    list_exports: Some(callbacks::list_exports),
    default_export: Some(callbacks::default_export),
    export_description: Some(callbacks::export_description),
    cleanup: Some(callbacks::cleanup),
    block_size: Some(callbacks::block_size),
});

const VERSION: &std::ffi::CStr = {
    match std::ffi::CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
        Ok(version) => version,
        Err(_) => panic!("a version number contains no zero byte"),
    }
};

/// The entry point: nbdkit calls it once after loading the plugin and copies what it points to.
#[unsafe(no_mangle)]
pub extern "C" fn plugin_init() -> *mut sys::nbdkit_plugin {
    (&raw const TABLE.0).cast_mut()
}
