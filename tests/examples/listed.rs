// SPDX-License-Identifier: BSD-3-Clause
//! What of the documents is not typed as it stands: where other words stand in for what is printed, and
//! the blocks that are left out, each with the reason.

/// Words that stand for something on the reader's side, and what they stand for here. Nothing else
/// of an example is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stand {
    /// The plugin under test.
    Plugin,
    /// A TCP port that nobody uses.
    FreePort,
    /// The port of an sshd of ours. The host itself, `example.com`, is in the configuration of ssh.
    SshPort,
    /// The user who runs the tests.
    User,
    /// The socket of a server "on the other host", which there is from the beginning.
    FarSocket,
}

pub const SUBSTITUTIONS: &[(&str, Stand)] = &[
    ("./target/release/libnbdkit_nbd_plugin.so", Stand::Plugin),
    ("10810", Stand::FreePort),
    ("10811", Stand::FreePort),
    ("example.com:2222", Stand::SshPort),
    ("bob@example.com", Stand::User),
    ("/run/disk.sock", Stand::FarSocket),
];

/// Examples with this word are for a host that ssh can reach.
pub const FAR_HOST: &str = "example.com";

/// A document, the first line of a block in it, and why the block is not typed.
pub type Listed = (&'static str, &'static str, &'static str);

const MANUAL: &str = "nbdkit-nbd-plugin.pod";
const EXAMPLES: &str = "nbdkit-nbd-plugin-examples.pod";
const README: &str = "README.md";
const SCALING: &str = "docs/scaling.md";
const CONTRIB: &str = "contrib/README.md";

/// The order is that of the documents.
pub const NOT_TYPED: &[Listed] = &[
    (
        MANUAL,
        "nbdkit nbd { [uri=]URI |",
        "a grammar; tests/help.rs compares it with the parameters that there are",
    ),
    (
        MANUAL,
        "a b c d e f g h i j k l m n o p q r s t u v w x",
        "a table; src/config/tests/pairs.rs compares it with what is refused",
    ),
    (MANUAL, "uri=nbds:              as uri", "the same"),
    (
        MANUAL,
        "Filter      What becomes of the plugin behind it",
        "a table; tests/filter_table.rs tries what it says",
    ),
    (MANUAL, "NAME:KEY", "the form of a line in a file"),
    (MANUAL, "nbd://[USER@][HOST][:PORT][/EXPORT]", "a grammar"),
    (
        MANUAL,
        "nbds://[USER@][HOST][:PORT][/EXPORT][?QUERY]",
        "a grammar",
    ),
    (
        MANUAL,
        "SERVER=hostname=storage retry=30 reconnect=600 request-timeout=60 keepalive=20",
        "a line of a file; tests/contrib.rs starts the service with one like it",
    ),
    (
        MANUAL,
        "nbdcopy --destination-is-zero -S 0 -- SOURCE OVERLAY",
        "the form of a command; tests/increments.rs has it, and the other page an example",
    ),
    (
        MANUAL,
        "disk.sock: slow request: read offset=1048576 length=4096",
        "a line that is printed; tests/slow_log.rs has one like it",
    ),
    (
        EXAMPLES,
        "qemu-system-x86_64 -m 1G -device virtio-blk-pci,drive=disk0 -blockdev \\",
        "a machine that runs until somebody ends it; 30 MB of packages that nothing else needs",
    ),
    (
        EXAMPLES,
        "<disk type='network' device='disk'>",
        "no command; there is no libvirt with a guest to give it to",
    ),
    (
        EXAMPLES,
        "virt-v2v -i disk guest.raw -o local -os /var/lib/libvirt/images",
        "needs libguestfs's appliance and a guest",
    ),
    (
        EXAMPLES,
        "SERVER=nbd://storage.example.net:10809/disk",
        "a line of a file; tests/contrib.rs starts the service with one like it",
    ),
    (
        EXAMPLES,
        "systemctl enable --now nbdkit-nbd@disk.socket",
        "needs systemd as process 1; tests/contrib.rs starts the service as systemd does",
    ),
    (
        README,
        "make run                         # serves until Ctrl-C",
        "serves for ever, or needs a server of the reader's; make check runs it with ONCE=1",
    ),
    (
        README,
        "make build",
        "changes the machine; tests/install.rs and make check install elsewhere",
    ),
    (
        README,
        "make bench            # about 31 minutes, on a machine that does nothing else",
        "half an hour; tests/bench_report has its parts",
    ),
    (
        README,
        "make          # the list of targets",
        "runs this very test; needs nbdkit's sources, or root",
    ),
    (
        "nbdkit-nbdctl.pod",
        "nbdkit-nbdctl [--json] PATH COMMAND",
        "a grammar; tests/nbdctl.rs compares the commands with those of the help",
    ),
    (
        SCALING,
        "nbdkit -U /run/rbd.sock -P /run/rbd.pid nbd \\",
        "needs a Ceph cluster",
    ),
    (
        SCALING,
        "spec:",
        "no command; there is no cluster to give it to",
    ),
    (
        CONTRIB,
        "sudo install -m 644 contrib/systemd/nbdkit-nbd@.* /etc/systemd/system/",
        "changes the machine; tests/contrib.rs starts the service as systemd does",
    ),
    (
        CONTRIB,
        "SERVER=socket=/run/storage.sock request-timeout=30",
        "lines of a file; tests/contrib.rs takes them from there",
    ),
];
