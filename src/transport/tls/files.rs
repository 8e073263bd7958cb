// SPDX-License-Identifier: BSD-3-Clause
//! How a user's file is read: once for a connection, never for long, and never from a terminal.
//!
//! A pipe, as a shell makes it for `<(...)`, can be read only once. What came out of one is kept for
//! the connections that follow.

use std::collections::HashMap;
use std::fmt;
use std::fs::{self, File, FileType, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use zeroize::Zeroizing;

use crate::proto::codec::printable;
use crate::transport::{Deadline, Error, describe_io};

/// How long the writer of a pipe may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Largest file that is read, bytes. Lists of revoked certificates can be large.
const LIMIT: usize = 64 << 20;
/// What a buffer holds at first if nothing is known, bytes.
const FIRST: usize = 16 << 10;
/// Longest path that a message shows, bytes.
const SHOWN: usize = 1024;

/// A file's content, cleared when it is not needed any more.
pub type Content = Zeroizing<Vec<u8>>;

/// What a file is wanted for, in words for who has to provide it.
#[derive(Clone, Copy, Debug)]
pub struct Purpose {
    /// What is to be in it.
    pub what: &'static str,
    /// Which parameter leads to it.
    pub parameter: &'static str,
}

/// Reads files, and keeps what can be read only once.
#[derive(Clone, Default)]
pub struct Files {
    kept: Arc<Mutex<HashMap<PathBuf, Content>>>,
}

/// Contents are secrets.
impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Files")
    }
}

impl Files {
    /// Reads a file that has to be there.
    pub fn read(&self, path: &Path, purpose: Purpose) -> Result<Content, Error> {
        let (content, _) = self.open(path).map_err(|why| cannot(path, purpose, &why))?;
        Ok(content)
    }

    /// Reads a file that may be missing. A link that leads nowhere is not missing: somebody wanted
    /// it to be there.
    pub fn read_if_there(&self, path: &Path, purpose: Purpose) -> Result<Option<Content>, Error> {
        match is_there(path, purpose)? {
            true => self.read(path, purpose).map(Some),
            false => Ok(None),
        }
    }

    /// Both of [`Self::read_if_there`] and [`Self::read_secret`].
    pub fn read_secret_if_there(
        &self,
        path: &Path,
        purpose: Purpose,
    ) -> Result<Option<Content>, Error> {
        match is_there(path, purpose)? {
            true => self.read_secret(path, purpose).map(Some),
            false => Ok(None),
        }
    }

    /// Reads a file with a secret in it, and says so if the secret may not be one.
    pub fn read_secret(&self, path: &Path, purpose: Purpose) -> Result<Content, Error> {
        let (content, mode) = self.open(path).map_err(|why| cannot(path, purpose, &why))?;
        if let Some(mode) = mode.filter(|mode| mode & 0o077 != 0) {
            log::warn!(
                target: "key-file-mode",
                "{}: others than its owner may use {}: its mode is {:04o}, 0600 would be private",
                shown(path),
                purpose.what,
                mode & 0o7777
            );
        }
        Ok(content)
    }

    /// Content and mode; there is no mode of interest where there is no file on a disk.
    fn open(&self, path: &Path) -> Result<(Content, Option<u32>), String> {
        let why = |error: io::Error| describe_io(&error);
        // To open a device may be to do something to it, and a terminal would wait for its user.
        let metadata = fs::metadata(path).map_err(why)?;
        check_kind(metadata.file_type())?;
        if metadata.file_type().is_fifo() {
            return Ok((self.read_once(path)?, None));
        }
        let file = open_without_waiting(path).map_err(why)?;
        let metadata = file.metadata().map_err(why)?;
        check_kind(metadata.file_type())?;
        let expected = size(&metadata);
        let content = read_all(&file, expected, || Ok(()))?;
        Ok((content, Some(metadata.permissions().mode())))
    }

    fn read_once(&self, path: &Path) -> Result<Content, String> {
        // Held while the pipe is read: who comes meanwhile would find nothing in it.
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(content) = kept.get(path) {
            return Ok(content.clone());
        }
        let pipe = open_without_waiting(path).map_err(|error| describe_io(&error))?;
        let deadline = Deadline::after(PATIENCE);
        let content = read_all(&pipe, FIRST, || wait(&pipe, deadline))?;
        kept.insert(path.to_owned(), content.clone());
        Ok(content)
    }
}

/// A path as messages show it.
pub fn shown(path: &Path) -> String {
    printable(path.as_os_str().as_bytes(), SHOWN)
}

/// A file that cannot be used, why, and what it is for.
pub fn cannot(path: &Path, purpose: Purpose, why: &str) -> Error {
    let Purpose { what, parameter } = purpose;
    Error::Tls(format!("{}: {why} ({what}, see {parameter})", shown(path)))
}

fn is_there(path: &Path, purpose: Purpose) -> Result<bool, Error> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(cannot(path, purpose, &describe_io(&error))),
    }
}

fn check_kind(kind: FileType) -> Result<(), String> {
    let what = if kind.is_dir() {
        "is a directory, not a file"
    } else if kind.is_char_device() || kind.is_block_device() {
        "is a device, not a file"
    } else if kind.is_socket() {
        "is a socket, not a file"
    } else {
        return Ok(());
    };
    Err(what.to_owned())
}

/// Neither a pipe without a writer nor a terminal that wants to be ours can hold us.
fn open_without_waiting(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
}

/// What the buffer for a file has to hold, if the file does not change.
fn size(metadata: &Metadata) -> usize {
    usize::try_from(metadata.len()).map_or(LIMIT, |size| size.min(LIMIT))
}

/// Waits until a pipe has something to be read, or has come to its end.
fn wait(pipe: &File, deadline: Deadline) -> Result<(), String> {
    loop {
        let mut fds = [PollFd::new(pipe, PollFlags::IN)];
        match poll(&mut fds, deadline.timespec().as_ref()) {
            Ok(0) => return Err("is a pipe into which nobody writes".to_owned()),
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => (),
            Err(errno) => return Err(describe_io(&errno.into())),
        }
    }
}

/// Reads to the end. Buffers that turn out to be too small are cleared.
fn read_all(
    mut file: &File,
    expected: usize,
    ready: impl Fn() -> Result<(), String>,
) -> Result<Content, String> {
    // One more than expected, so that the end is seen without a larger buffer.
    let mut buffer = Zeroizing::new(vec![0; expected + 1]);
    let mut used = 0;
    loop {
        ready()?;
        match file.read(&mut buffer[used..]) {
            Ok(0) => break,
            Ok(n) => used += n,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
            Err(error) => return Err(describe_io(&error)),
        }
        if used > LIMIT {
            return Err(format!("is larger than {} MiB", LIMIT >> 20));
        }
        if used == buffer.len() {
            let mut larger = Zeroizing::new(vec![0; 2 * used]);
            larger[..used].copy_from_slice(&buffer);
            buffer = larger;
        }
    }
    buffer.truncate(used);
    Ok(buffer)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    const PURPOSE: Purpose = Purpose {
        what: "the answer",
        parameter: "question",
    };

    fn refusal(path: &Path) -> String {
        Files::default()
            .read(path, PURPOSE)
            .expect_err("it is of no use")
            .to_string()
    }

    #[test]
    fn files_of_any_size_are_read_whole_and_anew() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("file");
        let files = Files::default();
        for size in [0, 1, FIRST, 3 * FIRST + 1] {
            fs::write(&path, vec![7; size]).expect("write a file");
            let content = files.read(&path, PURPOSE).expect("there is one");
            assert_eq!(*content, vec![7; size]);
        }
    }

    #[test]
    fn a_pipe_is_read_once_and_remembered() {
        let (reader, writer) = rustix::pipe::pipe().expect("pipe");
        let path = PathBuf::from(format!("/proc/self/fd/{}", reader.as_raw_fd()));
        let content = vec![7; 3 * FIRST];
        fs::File::from(writer)
            .write_all(&content)
            .expect("a pipe holds 64 KiB");
        let files = Files::default();
        for _ in 0..2 {
            assert_eq!(*files.read(&path, PURPOSE).expect("readable"), content);
        }
    }

    #[test]
    fn nothing_that_could_wait_is_waited_for() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let socket = directory.path().join("socket");
        let _listener = UnixListener::bind(&socket).expect("bind");
        assert!(refusal(Path::new("/dev/zero")).contains("is a device"));
        assert!(refusal(Path::new("/dev/tty")).contains("is a device"));
        assert!(refusal(directory.path()).contains("is a directory"));
        assert!(refusal(&socket).contains("is a socket"));
        // Somebody could write, and does not.
        let (reader, _writer) = rustix::pipe::pipe().expect("pipe");
        let path = PathBuf::from(format!("/proc/self/fd/{}", reader.as_raw_fd()));
        assert!(refusal(&path).contains("into which nobody writes"));
    }

    #[test]
    fn only_what_is_not_there_is_missing() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let files = Files::default();
        let path = directory.path().join("file");
        assert!(matches!(files.read_if_there(&path, PURPOSE), Ok(None)));
        fs::write(&path, "").expect("write a file");
        let below = path.join("below");
        assert!(files.read_if_there(&below, PURPOSE).is_err());
        fs::remove_file(&path).expect("remove a file");
        symlink("nowhere", &path).expect("make a link");
        let error = files.read_if_there(&path, PURPOSE).expect_err("a link");
        assert_eq!(
            error.to_string(),
            format!(
                "TLS: {}: No such file or directory (the answer, see question)",
                path.display()
            )
        );
    }

    #[test]
    fn paths_cannot_speak_to_a_terminal() {
        let message = refusal(Path::new("/nowhere/\n\x1b[31m"));
        assert!(message.contains(r"/nowhere/\n\u{1b}[31m: "), "{message}");
    }
}
