// SPDX-License-Identifier: BSD-3-Clause
//! The socket's file: made for its user alone, in the place of one that nobody listens on any more, and
//! removed in the end if it is still ours.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, fchmod};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with,
};

use crate::proto::codec::printable;
use crate::transport::describe_io;

/// Who connects may wait, so many at once.
const QUEUE: i32 = 16;

/// Why there cannot be a socket.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("control={}: {why}", printable(.path.as_os_str().as_encoded_bytes(), 200))]
pub struct Error {
    path: PathBuf,
    why: String,
}

impl Error {
    fn new(path: &Path, why: impl Into<String>) -> Self {
        Self {
            path: path.to_owned(),
            why: why.into(),
        }
    }

    /// The system does not want it.
    pub(super) fn system(path: &Path, error: &io::Error) -> Self {
        Self::new(path, describe_io(error))
    }

    /// What the thread needs cannot be had.
    pub(super) fn thread(path: &Path, error: &crate::transport::Error) -> Self {
        Self::new(path, error.to_string())
    }
}

/// What is there already.
enum Found {
    Nothing,
    /// A socket that nobody listens on any more.
    Stale,
}

/// Whether a socket can be made there, as far as that can be known before nbdkit is the user that it will
/// be.
pub fn check(path: &Path) -> Result<(), Error> {
    look(path)?;
    let directory = path.parent().unwrap_or(Path::new("/"));
    match fs::metadata(directory) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(Error::new(path, "its directory is none")),
        Err(error) => Err(Error::new(
            path,
            format!("its directory: {}", describe_io(&error)),
        )),
    }
}

fn look(path: &Path) -> Result<Found, Error> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => return Err(Error::system(path, &error)),
    };
    if !found.file_type().is_socket() {
        return Err(Error::new(path, "there is a file that is no socket"));
    }
    let in_use = || Error::new(path, "somebody listens there already");
    // A queue that is full is one of a listener, too.
    match connect_at_once(path) {
        Ok(()) | Err(Errno::AGAIN) => Err(in_use()),
        Err(Errno::CONNREFUSED) => Ok(Found::Stale),
        Err(Errno::NOENT) => Ok(Found::Nothing),
        // Of another kind of socket.
        Err(Errno::PROTOTYPE) => Err(in_use()),
        Err(errno) => Err(Error::system(path, &errno.into())),
    }
}

fn connect_at_once(path: &Path) -> Result<(), Errno> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &address)
}

/// A socket that is listened on.
#[derive(Debug)]
pub(super) struct Listener {
    socket: UnixListener,
    path: PathBuf,
    /// Device and number of the file.
    file: (u64, u64),
}

impl Listener {
    /// Makes the socket, for this user alone.
    pub(super) fn bind(path: &Path) -> Result<Self, Error> {
        let system = |errno: Errno| Error::system(path, &errno.into());
        if let Found::Stale = look(path)? {
            fs::remove_file(path).map_err(|error| Error::system(path, &error))?;
        }
        let address = SocketAddrUnix::new(path).map_err(system)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(system)?;
        // Linux gives the file the mode of the socket: there is no moment in which others could connect.
        fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(system)?;
        bind(&socket, &address).map_err(system)?;
        let found = fs::symlink_metadata(path).map_err(|error| Error::system(path, &error))?;
        let this = Self {
            socket: socket.into(),
            path: path.to_owned(),
            file: (found.dev(), found.ino()),
        };
        // Only now can anybody connect, and if that fails the file goes again.
        listen(&this.socket, QUEUE).map_err(system)?;
        Ok(this)
    }

    /// The socket.
    pub(super) fn socket(&self) -> &UnixListener {
        &self.socket
    }

    /// Somebody who has connected, if anybody has.
    pub(super) fn accept(&self) -> io::Result<UnixStream> {
        let (stream, _) = self.socket.accept()?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let found = fs::symlink_metadata(&self.path);
        if found.is_ok_and(|found| (found.dev(), found.ino()) == self.file) {
            // Somebody else may do so at the same time.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn told(result: Result<impl Sized, Error>) -> String {
        result.err().map_or_else(String::new, |error| error.why)
    }

    #[test]
    fn it_is_for_its_user_alone_and_goes_with_its_listener() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("socket");
        let listener = Listener::bind(&path).expect("a socket");
        let mode = fs::symlink_metadata(&path)
            .expect("there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        UnixStream::connect(&path).expect("somebody listens");
        assert_eq!(
            told(Listener::bind(&path)),
            "somebody listens there already"
        );
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn what_is_not_ours_any_more_stays() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("socket");
        let listener = Listener::bind(&path).expect("a socket");
        fs::remove_file(&path).expect("there");
        let another = Listener::bind(&path).expect("another");
        drop(listener);
        assert!(path.exists());
        drop(another);
        assert!(!path.exists());
    }

    #[test]
    fn one_that_nobody_listens_on_is_replaced_and_a_file_is_not() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("socket");
        drop(UnixListener::bind(&path).expect("a socket"));
        assert!(path.exists(), "it is left by whoever dies");
        check(&path).expect("stale");
        drop(Listener::bind(&path).expect("replaced"));
        fs::write(&path, "precious").expect("a file");
        let no_socket = "there is a file that is no socket";
        assert_eq!(told(check(&path)), no_socket);
        assert_eq!(told(Listener::bind(&path)), no_socket);
        assert_eq!(fs::read(&path).expect("there"), b"precious");
    }

    #[test]
    fn its_directory_must_be_there() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("none/socket");
        assert_eq!(
            told(check(&path)),
            "its directory: No such file or directory"
        );
    }
}
