// SPDX-License-Identifier: BSD-3-Clause
//! `command=`: a server that nbdkit starts, which finds a listening socket as descriptor 3.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::clients::{LIMIT, nbdsh, text};
use common::front::Front;
use common::nbdkit::{Nbdkit, plugin_args};
use common::process::{Guarded, eventually, ignore_nothing, inherit_nothing};
use common::refusal::{MODES, Mode, refusal_with};
use common::started::{MEMORY, Place, end, script, size, strs};
use common::upstream::noise_file;
use common::{need, need_all};

// Servers.

#[test]
fn nbdkit_as_the_server() {
    if !need("nbdkit") {
        return;
    }
    let place = Place::new();
    assert_eq!(size(&place.start(&MEMORY)), "1048576");
}

#[test]
fn qemu_nbd_as_the_server() {
    if !need_all(&["nbdkit", "qemu-nbd"]) {
        return;
    }
    let place = Place::new();
    let image = noise_file(place.path(), "image", 2 << 20, 61);
    let image = format!("arg={}", text(&image));
    // Without --persistent it serves one client only, whom all of nbdkit's clients share.
    let front = place.start(&["command=qemu-nbd", "arg=-f", "arg=raw", &image]);
    assert_eq!(size(&front), "2097152");
    assert_eq!(size(&front), "2097152");
}

#[test]
fn export_of_the_server_is_chosen() {
    if !need("nbdkit") {
        return;
    }
    // This server's disk holds the name that it was asked for.
    let place = Place::new();
    let front = place.start(&["command=nbdkit", "arg=-f", "arg=info", "export=a disk"]);
    assert_eq!(
        nbdsh(&front.uri(), "print(h.pread(6, 0).decode())").trim_end(),
        "a disk"
    );
}

#[test]
fn clients_share_the_connection() {
    if !need("nbdkit") {
        return;
    }
    let place = Place::new();
    let front = place.start(&MEMORY);
    let mut one = Front::open(front.socket()).expect("opens");
    let mut two = Front::open(front.socket()).expect("opens");
    assert_eq!(one.write(0, &[5; 512]), Ok(()));
    assert_eq!(two.read(0, 512), Ok(vec![5; 512]));
}

#[test]
fn first_argument_alone_is_the_command() {
    if !need("nbdkit") {
        return;
    }
    // As the plugin in C has it.
    let place = Place::new();
    let front = place.start(&["arg=nbdkit", "arg=-f", "arg=memory", "arg=1M"]);
    assert_eq!(size(&front), "1048576");
}

#[test]
fn program_is_what_command_says_wherever_it_stands() {
    if !need("nbdkit") {
        return;
    }
    let place = Place::new();
    let front = place.start(&["arg=-f", "arg=memory", "command=nbdkit", "arg=1M"]);
    assert_eq!(size(&front), "1048576");
}

// What the server finds.

#[test]
fn arguments_reach_the_server_as_they_are() {
    if !need("nbdkit") {
        return;
    }
    let words = [
        "two words",
        "$HOME",
        "*",
        "'\"`",
        "",
        "; exit 1",
        "a\nb",
        "-x",
    ];
    let place = Place::new();
    let mut args =
        script("printf '<%s>' \"$@\" > \"$DIR/args\"\nexec nbdkit -f memory 1M").to_vec();
    args.push("arg=sh".to_owned());
    args.extend(words.map(|word| format!("arg={word}")));
    let front = place.start(&strs(&args));
    assert_eq!(size(&front), "1048576");
    assert_eq!(
        place.file("args"),
        words.map(|word| format!("<{word}>")).concat()
    );
}

#[test]
fn program_is_looked_for_on_the_path_and_no_shell_is_asked() {
    if !need("nbdkit") {
        return;
    }
    let place = Place::new();
    let line = place.refusal(Mode::Foreground, &["command=nbdkit -f memory 1M"]);
    assert!(line.contains("nbdkit -f memory 1M"), "{line}");
    assert!(line.contains("No such file"), "{line}");
    assert!(line.contains("arg="), "says where arguments go: {line}");
}

#[test]
fn environment_is_that_of_socket_activation() {
    if !need("nbdkit") {
        return;
    }
    let place = Place::new();
    let args = script(
        "echo $LISTEN_FDS $(test $LISTEN_PID = $$ && echo same) > \"$DIR/listen\"
         echo \"$LISTEN_FDNAMES\" > \"$DIR/names\"
         exec nbdkit -f memory 1M",
    );
    let front = place.start(&strs(&args));
    assert_eq!(size(&front), "1048576");
    assert_eq!(place.file("listen"), "1 same\n");
    // One descriptor, one name; names are separated by colons.
    let names = place.file("names");
    assert!(
        names.trim_end().len() > 1 && !names.contains(':'),
        "{names}"
    );
}

#[test]
fn variables_of_our_own_activation_are_not_passed_on() {
    if !need("nbdkit") {
        return;
    }
    let place = Place::new();
    let args = script(
        "env | grep ^LISTEN_FDS= > \"$DIR/listen\"
         exec nbdkit -f memory 1M",
    );
    // nbdkit itself takes no notice of variables that are meant for another process.
    let front = Nbdkit::start_with(place.path(), &plugin_args(&strs(&args)), |command| {
        place.prepare(command);
        command.env("LISTEN_FDS", "7").env("LISTEN_PID", "1");
    });
    assert_eq!(size(&front), "1048576");
    assert_eq!(place.file("listen"), "LISTEN_FDS=1\n");
}

#[test]
fn descriptor_3_is_the_socket_and_no_other_is_open() {
    if !need("nbdkit") {
        return;
    }
    let place = Place::new();
    let args = script(
        "n=3
         while [ $n -lt 256 ]; do
             [ -e /proc/$$/fd/$n ] && readlink /proc/$$/fd/$n >> \"$DIR/fds\"
             n=$((n + 1))
         done
         exec nbdkit -f memory 1M",
    );
    let front = Nbdkit::start_with(place.path(), &plugin_args(&strs(&args)), |command| {
        place.prepare(command);
        inherit_nothing(command);
    });
    assert_eq!(size(&front), "1048576");
    let fds = place.file("fds");
    assert_eq!(fds.lines().count(), 1, "{fds}");
    assert!(fds.starts_with("socket:"), "{fds}");
}

#[test]
fn signals_are_in_their_usual_state() {
    if !need("nbdkit") {
        return;
    }
    let place = Place::new();
    // Read by a program, since shells change what they do with signals themselves.
    let args = script(
        "grep -E '^Sig(Blk|Ign):' /proc/self/status > \"$DIR/signals\"
         exec nbdkit -f memory 1M",
    );
    let front = Nbdkit::start_with(place.path(), &plugin_args(&strs(&args)), |command| {
        place.prepare(command);
        ignore_nothing(command);
    });
    assert_eq!(size(&front), "1048576");
    for line in place.file("signals").lines() {
        let (_, mask) = line.split_once('\t').expect("a mask");
        let mask = u64::from_str_radix(mask, 16).expect("hexadecimal");
        // Signals 32 and 33 belong to the C library, which hides them from everybody.
        assert_eq!(mask & !(0b11 << 31), 0, "{line}");
    }
}

#[test]
fn socket_is_in_a_directory_for_this_user_only() {
    if !need("nbdkit") {
        return;
    }
    let place = Place::new();
    let mut front = place.start(&MEMORY);
    let kept = place.kept();
    assert_eq!(kept.len(), 1, "{kept:?}");
    let mode = fs::metadata(&kept[0])
        .expect("a directory")
        .permissions()
        .mode();
    assert_eq!(mode & 0o7777, 0o700, "{mode:o}");
    end(&mut front);
    place.is_clean();
}

// Servers that do not come about. nbdkit must not serve then.

#[test]
fn server_that_ends_at_once_is_explained_by_its_last_words() {
    if !need("nbdkit") {
        return;
    }
    for mode in MODES {
        let place = Place::new();
        let args = script("echo once upon a time >&2; echo the disk is on fire >&2; exit 3");
        let (line, all) = refusal_with(place.path(), mode, &strs(&args), |command| {
            place.prepare(command);
        });
        assert!(line.contains("the disk is on fire"), "{mode:?}: {line}");
        assert!(line.contains("status 3"), "{mode:?}: {line}");
        assert_eq!(all.lines().count(), 1, "{mode:?}: told twice: {all}");
    }
}

#[test]
fn server_that_ends_without_a_word() {
    if !need("nbdkit") {
        return;
    }
    for mode in MODES {
        let line = Place::new().refusal(mode, &["command=true"]);
        assert!(line.contains("true"), "{mode:?}: names the command: {line}");
        assert!(line.contains("status 0"), "{mode:?}: {line}");
        assert!(
            line.contains("socket activation"),
            "{mode:?}: what may be the reason: {line}"
        );
    }
}

#[test]
fn server_that_is_killed_at_once() {
    if !need("nbdkit") {
        return;
    }
    let line = Place::new().refusal(Mode::Foreground, &strs(&script("kill -9 $$")));
    assert!(line.contains("signal 9"), "{line}");
}

#[test]
fn control_characters_in_last_words_are_not_passed_on() {
    if !need("nbdkit") {
        return;
    }
    let args = script("printf 'red \\033[31m alert\\n' >&2; exit 1");
    let line = Place::new().refusal(Mode::Foreground, &strs(&args));
    assert!(line.contains("alert"), "{line}");
    assert!(!line.contains('\u{1b}'), "{line:?}");
}

#[test]
fn program_that_does_not_exist() {
    if !need("nbdkit") {
        return;
    }
    for mode in MODES {
        let line = Place::new().refusal(mode, &["command=no-such-program"]);
        assert!(line.contains("no-such-program"), "{mode:?}: {line}");
        assert!(line.contains("No such file"), "{mode:?}: {line}");
    }
}

#[test]
fn program_that_cannot_be_run() {
    if !need("nbdkit") {
        return;
    }
    let place = Place::new();
    let file = place.path().join("data");
    fs::write(&file, "not a program").expect("write");
    let line = place.refusal(Mode::Foreground, &[&format!("command={}", text(&file))]);
    assert!(line.contains(text(&file)), "{line}");
    assert!(line.contains("Permission denied"), "{line}");
}

#[test]
fn server_that_never_answers_is_given_up_and_ended() {
    if !need("nbdkit") {
        return;
    }
    for mode in MODES {
        let place = Place::new();
        let mut args = script("exec sleep 300").to_vec();
        args.push("connect-timeout=1".to_owned());
        args.push("handshake-timeout=1".to_owned());
        let line = place.refusal(mode, &strs(&args));
        assert!(
            line.contains("timed out after 1 second"),
            "{mode:?}: {line}"
        );
        assert!(
            line.contains("socket activation"),
            "{mode:?}: what may be the reason: {line}"
        );
        let pid = place.file("pid");
        assert!(
            !Path::new(&format!("/proc/{}/stat", pid.trim_end())).exists(),
            "{mode:?}: the server still runs"
        );
    }
}

#[test]
fn slow_start_of_a_server_is_part_of_the_handshake() {
    if !need("nbdkit") {
        return;
    }
    let place = Place::new();
    let mut args = script("sleep 1.5; exec nbdkit -f memory 1M").to_vec();
    args.push("connect-timeout=1".to_owned());
    let front = place.start(&strs(&args));
    assert_eq!(size(&front), "1048576");
}

#[test]
fn server_that_died_with_its_socket_in_other_hands_is_not_waited_for() {
    if !need("nbdkit") {
        return;
    }
    // The connection stays open as long as somebody holds the socket, who will never answer; he might
    // after an end in order.
    for (status, limit) in [(3, 60), (0, 1)] {
        let place = Place::new();
        let mut args = script(&format!(
            "sleep 300 & echo $! > \"$DIR/holder\"; echo out of paper >&2; exit {status}"
        ))
        .to_vec();
        args.push(format!("handshake-timeout={limit}"));
        let begin = Instant::now();
        let line = place.refusal(Mode::Foreground, &strs(&args));
        let told = format!("status {status}: out of paper");
        assert!(line.contains(&told), "{line}");
        assert!(begin.elapsed() < Duration::from_secs(20));
        let holder = place.file("holder").trim_end().parse().expect("a pid");
        // SAFETY: kill takes plain numbers.
        unsafe { libc::kill(holder, libc::SIGKILL) };
    }
}

#[test]
fn server_that_goes_to_the_background_is_used() {
    if !need("nbdkit") {
        return;
    }
    let place = Place::new();
    let args = script(
        "sh -c 'sleep 1; export LISTEN_PID=$$; echo $$ > \"$DIR/serves\"; exec nbdkit -f memory 1M' &
         exit 0",
    );
    let front = place.start(&strs(&args));
    assert_eq!(size(&front), "1048576");
    let serves = place.file("serves").trim_end().parse().expect("a pid");
    // SAFETY: kill takes plain numbers.
    unsafe { libc::kill(serves, libc::SIGKILL) };
}

#[test]
fn words_of_a_server_that_takes_long_to_start_appear_meanwhile() {
    if !need("nbdkit") {
        return;
    }
    let place = Place::new();
    // Not in one piece on the command line, which appears, too.
    let args = script("printf 'rewinding %s\\n' tape >&2; while :; do sleep 0.1; done");
    let mut command = Command::new("nbdkit");
    command
        .args(["-f", "-U", "front.sock"])
        .args(plugin_args(&strs(&args)))
        .current_dir(place.path());
    place.prepare(&mut command);
    let mut nbdkit = Guarded::spawn(&mut command);
    eventually("the words appear", LIMIT, || {
        assert!(nbdkit.alive(), "{}", nbdkit.stderr());
        nbdkit.stderr().contains("rewinding tape\n").then_some(())
    });
    nbdkit.signal(libc::SIGKILL);
    place.is_clean();
}

#[test]
fn place_that_cannot_be_used_is_named() {
    if !need("nbdkit") {
        return;
    }
    let place = Place::new();
    let (line, _) = refusal_with(place.path(), Mode::Foreground, &MEMORY, |command| {
        command.env("TMPDIR", "/no/such/place");
    });
    assert!(
        line.contains("/no/such/place: No such file or directory"),
        "{line}"
    );
}

#[test]
fn refused_export_ends_the_server() {
    if !need("nbdkit") {
        return;
    }
    for mode in MODES {
        let place = Place::new();
        let mut args = script(
            "exec nbdkit -f --filter=exportname memory 1M exportname-strict=true exportname=right",
        )
        .to_vec();
        args.push("export=wrong".to_owned());
        let line = place.refusal(mode, &strs(&args));
        assert!(line.contains("wrong"), "{mode:?}: {line}");
        let pid = place.file("pid");
        assert!(
            !Path::new(&format!("/proc/{}/stat", pid.trim_end())).exists(),
            "{mode:?}: the server still runs"
        );
    }
}
