// SPDX-License-Identifier: BSD-3-Clause
//! A server that writes down who comes: connections, lists, exports opened and closed, flushes.

use std::fs;
use std::path::{Path, PathBuf};

use super::clients::LIMIT;
use super::nbdkit::Nbdkit;
use super::pair::Upstream;
use super::process::eventually;

/// Such a server, with the exports `disk`, its default one, and `other`, of 1 MiB each.
pub struct Counted {
    nbdkit: Nbdkit,
    log: PathBuf,
}

impl Upstream for Counted {
    fn socket(&self) -> &Path {
        self.nbdkit.socket()
    }
}

impl Counted {
    pub fn start(directory: &Path) -> Self {
        Self::with(directory, &[])
    }

    /// `extra` are options of nbdkit, which begin with `-`, and scripts of its eval plugin instead of these.
    pub fn with(directory: &Path, extra: &[&str]) -> Self {
        let log = directory.join("visitors");
        fs::write(&log, "").expect("write a log");
        let note =
            |word: &str, then: &str| format!("{word}=echo {word} >> {}; {then}", log.display());
        let (options, scripts): (Vec<&str>, Vec<&str>) =
            extra.iter().partition(|arg| arg.starts_with('-'));
        let mut args: Vec<String> = options.into_iter().map(str::to_owned).collect();
        args.push("eval".to_owned());
        let usual = [
            note("preconnect", "true"),
            note("list_exports", "echo NAMES; echo disk; echo other"),
            note("default_export", "echo disk"),
            note(
                "open",
                "case \"$3\" in disk|other) echo \"$3\";; *) echo ENOENT no such export >&2; exit 1;; esac",
            ),
            note("close", "true"),
            note("flush", "true"),
            "get_size=echo 1M".to_owned(),
            "can_write=exit 0".to_owned(),
            "can_flush=exit 0".to_owned(),
            "can_multi_conn=exit 0".to_owned(),
            "thread_model=echo parallel".to_owned(),
            "pread=head -c $3 /dev/zero".to_owned(),
            "pwrite=cat > /dev/null".to_owned(),
        ];
        let key = |script: &str| script.split_once('=').map(|(key, _)| key.to_owned());
        let is_usual = |script: &String| !scripts.iter().any(|own| key(own) == key(script));
        args.extend(usual.into_iter().filter(is_usual));
        args.extend(scripts.iter().map(|script| (*script).to_owned()));
        Self {
            nbdkit: Nbdkit::start(directory, &args),
            log,
        }
    }

    /// How often that happened.
    pub fn count(&self, what: &str) -> usize {
        let log = fs::read_to_string(&self.log).expect("read the log");
        log.lines().filter(|line| *line == what).count()
    }

    /// Waits until everybody has left, and returns how many connections and how many opens there were.
    pub fn visits(&self) -> (usize, usize) {
        self.await_count("close", self.count("open"));
        (self.count("preconnect"), self.count("open"))
    }

    /// Waits until that has happened so often.
    pub fn await_count(&self, what: &str, times: usize) {
        eventually(&format!("{what} is seen {times} times"), LIMIT, || {
            (self.count(what) == times).then_some(())
        });
    }

    /// Tells it to end, which it must do well.
    pub fn end(&mut self) {
        self.nbdkit.ends_well();
    }
}
