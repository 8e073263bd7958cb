// SPDX-License-Identifier: BSD-3-Clause
//! Error numbers: the wire's on one side, this machine's on the other.

use std::fmt;

/// An error number as the server sent it. Zero is "no error" and never stored here by the reply
/// machine.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct NbdErrno(pub u32);

impl NbdErrno {
    /// Operation not permitted.
    pub const EPERM: Self = Self(1);
    /// Input or output failed.
    pub const EIO: Self = Self(5);
    /// The server ran out of memory.
    pub const ENOMEM: Self = Self(12);
    /// The request was invalid.
    pub const EINVAL: Self = Self(22);
    /// The server ran out of space.
    pub const ENOSPC: Self = Self(28);
    /// The request, or an answer in one piece, would be too large.
    pub const EOVERFLOW: Self = Self(75);
    /// The request cannot be done (fast).
    pub const ENOTSUP: Self = Self(95);
    /// The server is going away.
    pub const ESHUTDOWN: Self = Self(108);

    /// This machine's number for it. Any value outside the specification's table counts as EINVAL
    /// ("Error values").
    pub fn local(self) -> i32 {
        match self {
            Self::EPERM => libc::EPERM,
            Self::EIO => libc::EIO,
            Self::ENOMEM => libc::ENOMEM,
            Self::ENOSPC => libc::ENOSPC,
            Self::EOVERFLOW => libc::EOVERFLOW,
            Self::ENOTSUP => libc::ENOTSUP,
            Self::ESHUTDOWN => libc::ESHUTDOWN,
            // spec: Error values: SHOULD: an unexpected error is NBD_EINVAL, and no reason to disconnect
            _ => libc::EINVAL,
        }
    }

    fn name(self) -> Option<&'static str> {
        Some(match self {
            Self::EPERM => "NBD_EPERM",
            Self::EIO => "NBD_EIO",
            Self::ENOMEM => "NBD_ENOMEM",
            Self::EINVAL => "NBD_EINVAL",
            Self::ENOSPC => "NBD_ENOSPC",
            Self::EOVERFLOW => "NBD_EOVERFLOW",
            Self::ENOTSUP => "NBD_ENOTSUP",
            Self::ESHUTDOWN => "NBD_ESHUTDOWN",
            _ => return None,
        })
    }
}

impl fmt::Display for NbdErrno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "unknown error {}", self.0),
        }
    }
}

impl fmt::Debug for NbdErrno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_translated_by_table_not_by_number() {
        assert_eq!(NbdErrno::ENOSPC.local(), libc::ENOSPC);
        assert_eq!(NbdErrno::ESHUTDOWN.local(), libc::ESHUTDOWN);
        for unknown in [0, 2, 71, 0xffff_ffff] {
            assert_eq!(NbdErrno(unknown).local(), libc::EINVAL);
        }
        assert_eq!(NbdErrno(71).to_string(), "unknown error 71");
    }
}
