// SPDX-License-Identifier: BSD-3-Clause
//! New keys in the middle of a connection, for which the openssl crate has no name.

use std::ffi::{c_int, c_void};

use openssl::error::ErrorStack;
use openssl::ssl::SslStream;

/// `SSL_KEY_UPDATE_NOT_REQUESTED` and `SSL_KEY_UPDATE_REQUESTED`, whether the peer renews its key.
const OURS: c_int = 0;
const BOTH: c_int = 1;

unsafe extern "C" {
    fn SSL_key_update(ssl: *mut c_void, kind: c_int) -> c_int;
}

/// The key with which we send is renewed with the next record, and that of the peer, if `theirs`,
/// as soon as it has got that. Only TLS 1.3 has this. False where it cannot be done just now.
pub fn renew<S>(stream: &mut SslStream<S>, theirs: bool) -> bool {
    let kind = if theirs { BOTH } else { OURS };
    let ssl: *mut c_void = std::ptr::from_ref(stream.ssl()).cast_mut().cast();
    // SAFETY: an `SslRef` is OpenSSL's own SSL seen through its pointer. The stream that owns it is
    // borrowed exclusively, so it is alive and nobody else's; the call keeps no pointer.
    let done = unsafe { SSL_key_update(ssl, kind) } == 1;
    if !done {
        // The reason must not be taken for that of a later failure.
        drop(ErrorStack::get());
    }
    done
}
