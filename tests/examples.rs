//! The examples of the manual and of the README can be typed one after another.

mod common;

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use common::manual;
use common::process::{eventually, run};
use common::{need_all, plugin};

/// One example takes a few seconds at most; the machine may be busy.
const LIMIT: Duration = Duration::from_secs(90);

/// What the examples use beside a shell and its usual companions.
const PROGRAMS: [&str; 9] = [
    "bash", "nbdkit", "nbdinfo", "nbdcopy", "qemu-nbd", "qemu-img", "qemu-io", "openssl", "psktool",
];

/// A title and the commands below it.
struct Example {
    title: String,
    commands: String,
}

/// The indented paragraphs below each `=head2` of EXAMPLES that are no drawings.
fn examples_of_the_manual() -> Vec<Example> {
    manual::section(Some("EXAMPLES"))
        .split("\n=head2 ")
        .skip(1)
        .map(|example| {
            let (title, text) = example.split_once('\n').expect("a title and text");
            let commands: Vec<_> = text
                .split("\n\n")
                .map(|paragraph| paragraph.trim_start_matches('\n'))
                .filter(|paragraph| paragraph.starts_with(' ') && !paragraph.contains("+--"))
                .collect();
            Example {
                title: title.to_owned(),
                commands: commands.join("\n"),
            }
        })
        .collect()
}

/// All that there is to type in one section of the README: one session, as variables are kept.
fn session_of_the_readme(section: &str) -> Example {
    let readme = manual::file("README.md");
    let (_, rest) = readme
        .split_once(&format!("\n## {section}\n"))
        .expect("the section");
    let section = rest.split("\n## ").next().expect("always a first part");
    let blocks: Vec<_> = section.split("\n```\n").skip(1).step_by(2).collect();
    Example {
        title: "README".to_owned(),
        commands: blocks.join("\n"),
    }
}

/// A directory to type examples in, where `nbdkit nbd` is the plugin under test.
struct Desk {
    directory: tempfile::TempDir,
}

impl Desk {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        let bin = directory.path().join("bin");
        fs::create_dir(&bin).expect("directory");
        let wrapper = bin.join("nbdkit");
        let path = std::env::var("PATH").expect("PATH");
        let script = format!(
            "#!/bin/bash\nPATH='{path}'\nfor i in $(seq $#); do\n\
             if [ \"${{!i}}\" = nbd ]; then set -- \"${{@:1:i-1}}\" '{}' \"${{@:i+1}}\"; break; fi\n\
             done\nexec nbdkit \"$@\"\n",
            plugin().display()
        );
        fs::write(&wrapper, script).expect("wrapper");
        fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).expect("executable");
        Self { directory }
    }

    /// Runs the commands as a script that ends at the first that fails, and then expects all of the
    /// servers to end that told their process id.
    fn type_in(&self, example: &Example) {
        let commands = with_free_ports(&example.commands).replace(
            "./target/release/libnbdkit_nbd_plugin.so",
            &plugin().display().to_string(),
        );
        let path = format!(
            "{}:{}",
            self.directory.path().join("bin").display(),
            std::env::var("PATH").expect("PATH")
        );
        let output = run(
            Command::new("bash")
                .args(["-euxo", "pipefail", "-c", &commands])
                .current_dir(self.directory.path())
                .env("PATH", path),
            LIMIT,
        );
        let left: Vec<_> = self
            .servers()
            .into_iter()
            .filter(|(_, pid)| !ends(pid))
            .collect();
        for (file, pid) in self.servers() {
            if left.contains(&(file.clone(), pid.clone())) {
                let _ = Command::new("kill").args(["-KILL", &pid]).status();
            }
            // The number may be another process's by the time that the next example ends.
            fs::remove_file(file).expect("file of a process id");
        }
        assert!(
            output.status.success(),
            "{}: {}\n{}\n{}",
            example.title,
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(left.is_empty(), "{}: left running: {left:?}", example.title);
    }

    /// The files of process ids, and what is in them.
    fn servers(&self) -> Vec<(PathBuf, String)> {
        fs::read_dir(self.directory.path())
            .expect("the directory")
            .map(|entry| entry.expect("entry").path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "pid"))
            .map(|path| {
                let pid = fs::read_to_string(&path).expect("process id");
                (path, pid.trim().to_owned())
            })
            .collect()
    }
}

/// Whether the process goes away within the time that a server may take to end.
fn ends(pid: &str) -> bool {
    // Of a process that has ended and waits for its parent nothing is left but the number.
    let gone = || {
        let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        !command.contains("nbd")
    };
    std::panic::catch_unwind(|| {
        eventually("the server ends", Duration::from_secs(15), || {
            gone().then_some(())
        });
    })
    .is_ok()
}

/// The ports of the examples may be in use here.
fn with_free_ports(commands: &str) -> String {
    let mut commands = commands.to_owned();
    for port in ["10810", "10811"] {
        let listener = TcpListener::bind("localhost:0").expect("a free port");
        let free = listener.local_addr().expect("its address").port();
        commands = commands.replace(port, &free.to_string());
    }
    commands
}

#[test]
fn manual_can_be_typed() {
    if !need_all(&PROGRAMS) {
        return;
    }
    let desk = Desk::new();
    let examples = examples_of_the_manual();
    let (typed, elsewhere): (Vec<_>, Vec<_>) = examples
        .iter()
        .partition(|example| !example.commands.contains("example.com"));
    // What needs a host of the reader's own is the exception.
    assert!(typed.len() > 10 && elsewhere.len() < 4, "{}", typed.len());
    for example in typed {
        desk.type_in(example);
    }
}

#[test]
fn examples_end_what_they_start() {
    // An nbdkit ends with the command of --run, or writes down which process to kill.
    for example in examples_of_the_manual() {
        let lines = example.commands.replace("\\\n", " ");
        let commands = lines
            .lines()
            .filter(|line| line.trim_start().starts_with("nbdkit "));
        for command in commands {
            let pidfile = command
                .split(" -P ")
                .nth(1)
                .and_then(|rest| rest.split(' ').next());
            match pidfile {
                Some(file) => assert!(
                    example.commands.contains(&format!("$(cat {file})")),
                    "{}: nobody ends: {command}",
                    example.title
                ),
                None => assert!(command.contains("--run"), "{}: {command}", example.title),
            }
        }
    }
}

#[test]
fn readme_can_be_typed() {
    if !need_all(&PROGRAMS) {
        return;
    }
    let session = session_of_the_readme("Use");
    assert_eq!(session.commands.matches("nbdkit -U ").count(), 4);
    Desk::new().type_in(&session);
}
