//! What `nbdkit nbd --help` prints. `tests/help.rs` compares it with the manual.

use std::ffi::CStr;

/// One parameter a line, the way nbdkit's own plugins write them.
pub const HELP: &CStr = c"\
socket=<SOCKNAME>      (required) The Unix socket to connect to.
export=<NAME>          Export name to connect to (default \"\").
connect-timeout=<TIME> Longest wait for the connection (default 30 seconds).
handshake-timeout=<TIME>
                       Longest wait for the handshake (default 30 seconds).
request-timeout=<TIME> Longest wait for the answer to a request (default none).
";
