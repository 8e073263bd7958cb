// SPDX-License-Identifier: BSD-3-Clause
//! What `nbdkit nbd --help` prints. `tests/help.rs` compares it with the manual.

use std::ffi::CStr;

/// One parameter a line, the way nbdkit's own plugins write them.
pub const HELP: &CStr = c"\
[uri=]<URI>            The server and export as an NBD URI.
socket=<SOCKNAME>      The Unix socket to connect to.
hostname=<HOST>        The TCP host to connect to.
port=<PORT>            TCP port or service, or vsock port (default 10809).
vsock=<CID>            The context id of the virtio socket to connect to.
command=<COMMAND>      A server to start, with a socket to listen on.
arg=<ARG>              An argument for the command; may be repeated.
socket-fd=<FD>         A connected socket, by file descriptor.
export=<NAME>          Export name to connect to (default \"\").
dynamic-export=<BOOL>  Pass the client's export name on (default false).
retry=<N>              Try to connect N more times, a second apart (default 0).
shared=<BOOL>          One connection for all clients (default false).
connections=<N>        Up to N connections for each client (default 1).
servers=<PLAN>         Several uri=, socket=, hostname= are meant: 'failover'
                       for one after another, 'spread' for all at once.
servers-same-disk=<BOOL>
                       Whether all servers have one disk (default false).
tls=<MODE>             How to use TLS: 'off', 'on' or 'require'.
tls-certificates=<DIR> Directory of X.509 certificates.
tls-key-password=<PASSWORD>
                       Password of the client's key: +FILE, -FD, or - to ask.
tls-verify=<BOOL>      Whether to check the server's certificate.
tls-username=<NAME>    User name to present with a pre-shared key.
tls-psk=<FILE>         File of pre-shared keys.
tls-hostname=<NAME>    Name that the server's certificate must bear.
tls-priority=<CIPHERS> Ciphers to offer, as OpenSSL writes them.
tls-pin=sha256:<HEX>   Digest of the public key that the server must have.
connect-timeout=<TIME> Longest wait for the connection (default 30 seconds).
handshake-timeout=<TIME>
                       Longest wait for the handshake (default 2 minutes).
request-timeout=<TIME> Longest wait for the answer to a request (default none).
close-timeout=<TIME>   Longest wait when a connection is left (default 5 s).
command-timeout=<TIME> Longest wait for the command to end (default none).
reconnect=<TIME>       Come back to a lost server for so long, or 'forever'
                       (default 0, which is off).
reconnect-delay=<FIRST>[:<MAX>]
                       Pauses between the tries (default 100ms:5s).
replay=<SIZE>          Unflushed writes to keep for it (default 64M).
linger=<TIME>          How long a client's connection is kept for the next one,
                       or 'forever' (default 0, which is off).
keepalive=<TIME>       Silence after which TCP asks for the server's host
                       (default 0: the kernel's time).
detect-zeroes=<MODE>   Writes of zeroes as such: 'off', 'on' or 'unmap'.
align=<MODE>           Requests that do not keep to the server's blocks:
                       'advertise' (refused) or 'emulate'.
quirks=<LIST>          What not to ask of a server, or not for so much at once.
extents=<CONTEXT>      Where extents come from: base:allocation (the default),
                       qemu:dirty-bitmap:<NAME> (* for the only one),
                       qemu:allocation-depth; 'by-name', or 'list' to see.
extents-cache=<SIZE>   Memory for extents of all clients (default 0: none).
stats=<FILE>           Write statistics to FILE at the end, or to 'stderr'.
stats-interval=<TIME>  And from time to time (default 0, which is off).
stats-format=<FORMAT>  As 'text' (the default), or for 'prometheus'.
slow-log=<TIME>        Tell of each request that takes longer (default 0: off).
control=<SOCKNAME>     A Unix socket to make, for commands while it runs.
probe=<MODE>           Print what the server is, and end: 1, or 'json'.
";
