// SPDX-License-Identifier: BSD-3-Clause
//! Names to addresses, without being held by a resolver that hangs.
//!
//! getaddrinfo(3) has no time limit and cannot be interrupted, so somebody else has to wait for it.
//! A thread of ours cannot: it would come back into code that nbdkit may have unloaded meanwhile.
//! So it is
//!
//! * a thread of the C library's, by getaddrinfo_a(3): it runs nothing of ours, and a question that
//!   has to be left to it keeps its memory until it has been answered;
//! * as long as this process has no second thread, a child, which is killed when it is late. nbdkit
//!   goes into the background by fork(2), which would leave the C library believing in threads that
//!   did not come along, and no later question would ever be answered.
//!
//! Addresses written as numbers need none of it. C libraries without getaddrinfo_a wait themselves.

use std::ffi::{CStr, CString};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::OwnedFd;
use std::ptr::null_mut;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use super::{Deadline, Error};
use crate::proto::codec::printable;

/// Most addresses of one host that are tried. What a resolver answers is somebody else's choice.
const MAX_ADDRESSES: usize = 64;

/// Bytes of a child's answer: [`MAX_ADDRESSES`] lines, or an error.
const MAX_ANSWER: usize = 64 * MAX_ADDRESSES;

/// Asks the resolver, afresh every time: a server may have moved since. `port` is a number or the
/// name of a service. The addresses come in the order in which they are to be tried.
pub fn resolve(host: &str, port: &str, deadline: Deadline) -> Result<Vec<SocketAddr>, Error> {
    let question = Question::new(host, port)?;
    let numeric = libc::AI_NUMERICHOST | libc::AI_NUMERICSERV;
    if let Ok(addresses) = question.answer_now(numeric) {
        return Ok(addresses);
    }
    if is_only_thread() {
        in_child(&question, deadline)
    } else {
        by_library(question, deadline)
    }
}

/// Whether services(5), or whatever the system has in its place, knows a TCP service. `None` if it
/// does not say so before the deadline.
pub fn knows_service(name: &str, deadline: Deadline) -> Option<bool> {
    match resolve("127.0.0.1", name, deadline) {
        Ok(_) => Some(true),
        Err(Error::Resolve(_)) => Some(false),
        Err(_) => None,
    }
}

/// Whether to go on waiting for an answer.
fn check(deadline: Deadline) -> Result<(), Error> {
    deadline.check_during("the name was still being looked up")
}

/// Whether this process can be forked without leaving behind a thread that may hold a lock.
fn is_only_thread() -> bool {
    std::fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() == 1)
}

/// What is asked, as the C library wants it.
#[derive(Debug)]
struct Question {
    host: CString,
    port: CString,
}

impl Question {
    fn new(host: &str, port: &str) -> Result<Self, Error> {
        let text = |text| CString::new(text).map_err(|_| Error::Resolve("a zero byte".to_owned()));
        Ok(Self {
            host: text(host)?,
            port: text(port)?,
        })
    }

    /// Asks in this thread, for as long as it takes.
    fn answer_now(&self, flags: i32) -> Result<Vec<SocketAddr>, Error> {
        let hints = hints(flags);
        let mut list = null_mut();
        // SAFETY: two C strings, a complete structure and a place for the result, all alive here.
        let code =
            unsafe { libc::getaddrinfo(self.host.as_ptr(), self.port.as_ptr(), &hints, &mut list) };
        let errno = std::io::Error::last_os_error();
        // SAFETY: the list is the one that getaddrinfo made, if it succeeded, and used only here.
        unsafe { Answer::take(code, list) }.map_err(|error| match code {
            libc::EAI_SYSTEM => Error::Resolve(super::describe_io(&errno)),
            _ => error,
        })
    }
}

/// Stream sockets of any family.
fn hints(flags: i32) -> libc::addrinfo {
    libc::addrinfo {
        ai_flags: flags,
        ai_family: libc::AF_UNSPEC,
        ai_socktype: libc::SOCK_STREAM,
        ai_protocol: 0,
        ai_addrlen: 0,
        ai_addr: null_mut(),
        ai_canonname: null_mut(),
        ai_next: null_mut(),
    }
}

/// A list of the C library's.
struct Answer(*mut libc::addrinfo);

impl Answer {
    /// The addresses in a list, which is freed.
    ///
    /// # Safety
    ///
    /// `list` is null, or getaddrinfo's and nobody else's.
    unsafe fn take(code: i32, list: *mut libc::addrinfo) -> Result<Vec<SocketAddr>, Error> {
        let answer = Self(list);
        if code != 0 {
            return Err(Error::Resolve(meaning(code)));
        }
        let addresses = answer.addresses();
        if addresses.is_empty() {
            return Err(Error::Resolve("no address".to_owned()));
        }
        Ok(addresses)
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        let mut addresses = Vec::new();
        let mut next = self.0;
        // SAFETY: each entry is null or valid until the list is freed, which is when `self` goes.
        while let Some(entry) = unsafe { next.as_ref() } {
            // SAFETY: as the entry itself.
            let address = unsafe { address(entry) };
            if let Some(address) = address.filter(|address| !addresses.contains(address)) {
                addresses.push(address);
            }
            if addresses.len() == MAX_ADDRESSES {
                break;
            }
            next = entry.ai_next;
        }
        addresses
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: the list came from getaddrinfo, and nothing refers to it any more.
            unsafe { libc::freeaddrinfo(self.0) };
        }
    }
}

/// The address of one entry, if it is one of the internet's.
///
/// # Safety
///
/// The entry is one of getaddrinfo's.
unsafe fn address(entry: &libc::addrinfo) -> Option<SocketAddr> {
    let length = entry.ai_addrlen as usize;
    match entry.ai_family {
        libc::AF_INET if length >= size_of::<libc::sockaddr_in>() => {
            // SAFETY: the family says what is there, and the length that it is complete.
            let found = unsafe { entry.ai_addr.cast::<libc::sockaddr_in>().read_unaligned() };
            let ip = Ipv4Addr::from(u32::from_be(found.sin_addr.s_addr));
            Some(SocketAddrV4::new(ip, u16::from_be(found.sin_port)).into())
        }
        libc::AF_INET6 if length >= size_of::<libc::sockaddr_in6>() => {
            // SAFETY: as above.
            let found = unsafe { entry.ai_addr.cast::<libc::sockaddr_in6>().read_unaligned() };
            let ip = Ipv6Addr::from(found.sin6_addr.s6_addr);
            let (port, scope) = (u16::from_be(found.sin6_port), found.sin6_scope_id);
            Some(SocketAddrV6::new(ip, port, found.sin6_flowinfo, scope).into())
        }
        _ => None,
    }
}

/// The C library's text for what getaddrinfo says.
fn meaning(code: i32) -> String {
    // SAFETY: takes any number.
    let text = unsafe { libc::gai_strerror(code) };
    // SAFETY: it has a text for every number, which stays for ever.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_string_lossy().into_owned()
}

/// Asks in a child of this process, which must have one thread only: the child would find every
/// lock that another thread holds locked for ever.
fn in_child(question: &Question, deadline: Deadline) -> Result<Vec<SocketAddr>, Error> {
    let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC).map_err(Error::io("pipe"))?;
    // SAFETY: there are no other threads, so that the child is as good as this process.
    let child = match unsafe { libc::fork() } {
        0 => answer_and_exit(question, &theirs),
        pid => Pid::from_raw(pid.max(0)).ok_or_else(|| Error::Io {
            call: "fork",
            errno: last_errno(),
        })?,
    };
    drop(theirs);
    let answer = receive_answer(&ours, deadline);
    if answer.is_err() {
        let _ = kill_process(child, Signal::KILL);
    }
    while matches!(waitpid(Some(child), WaitOptions::empty()), Err(Errno::INTR)) {}
    decode(&answer?)
}

/// In the child: the answer, as lines, or an error behind an exclamation mark.
fn answer_and_exit(question: &Question, report: &OwnedFd) -> ! {
    struct Exit;
    impl Drop for Exit {
        fn drop(&mut self) {
            // SAFETY: ends this process without running anything of the one it was forked from.
            unsafe { libc::_exit(0) }
        }
    }
    // A panic must not make a second nbdkit of this copy.
    let _exit = Exit;
    // Nobody would kill it if nbdkit is killed now. SAFETY: plain numbers.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    let text = match question.answer_now(0) {
        Ok(addresses) => addresses
            .iter()
            .map(|address| format!("{address}\n"))
            .collect(),
        // What it is an error of is said again where it is received.
        Err(Error::Resolve(why)) => format!("!{why}"),
        Err(error) => format!("!{error}"),
    };
    // An answer is shorter than what a pipe takes in one piece at once.
    let _ = rustix::io::write(report, text.as_bytes());
    // SAFETY: as above.
    unsafe { libc::_exit(0) }
}

/// All that the child writes, once it is complete.
fn receive_answer(pipe: &OwnedFd, deadline: Deadline) -> Result<Vec<u8>, Error> {
    let mut answer = Vec::new();
    let mut piece = [0; 512];
    while answer.len() <= MAX_ANSWER {
        let mut fds = [PollFd::new(pipe, PollFlags::IN)];
        match poll(&mut fds, deadline.timespec().as_ref()) {
            Ok(0) | Err(Errno::INTR) => {
                check(deadline)?;
                continue;
            }
            Ok(_) => (),
            Err(errno) => return Err(Error::io("poll")(errno)),
        }
        match rustix::io::read(pipe, &mut piece) {
            Ok(0) => break,
            Ok(n) => answer.extend_from_slice(&piece[..n]),
            Err(Errno::INTR) => (),
            Err(errno) => return Err(Error::io("read")(errno)),
        }
    }
    Ok(answer)
}

fn decode(answer: &[u8]) -> Result<Vec<SocketAddr>, Error> {
    if let Some(error) = answer.strip_prefix(b"!") {
        return Err(Error::Resolve(printable(error, MAX_ANSWER)));
    }
    let text = String::from_utf8_lossy(answer);
    let addresses: Vec<_> = text.lines().filter_map(|line| line.parse().ok()).collect();
    if addresses.is_empty() {
        // It was killed, by the kernel for want of memory perhaps.
        return Err(Error::Resolve("the look-up ended early".to_owned()));
    }
    Ok(addresses)
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

#[cfg(not(target_env = "gnu"))]
fn by_library(question: Question, _deadline: Deadline) -> Result<Vec<SocketAddr>, Error> {
    question.answer_now(0)
}

#[cfg(target_env = "gnu")]
use self::library::by_library;

/// getaddrinfo_a(3), which is part of glibc's libc itself since version 2.34.
#[cfg(target_env = "gnu")]
mod library {
    use std::ptr::null;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::{Mutex, PoisonError};

    use super::*;

    /// `struct gaicb` of netdb.h.
    #[repr(C)]
    struct Gaicb {
        name: *const libc::c_char,
        service: *const libc::c_char,
        request: *const libc::addrinfo,
        result: *mut libc::addrinfo,
        state: libc::c_int,
        reserved: [libc::c_int; 5],
    }

    const GAI_NOWAIT: libc::c_int = 1;
    const EAI_INPROGRESS: libc::c_int = -100;
    const EAI_NOTCANCELED: libc::c_int = -102;

    unsafe extern "C" {
        fn getaddrinfo_a(
            mode: libc::c_int,
            list: *const *mut Gaicb,
            entries: libc::c_int,
            event: *mut libc::sigevent,
        ) -> libc::c_int;
        fn gai_suspend(
            list: *const *const Gaicb,
            entries: libc::c_int,
            timeout: *const libc::timespec,
        ) -> libc::c_int;
        fn gai_error(request: *mut Gaicb) -> libc::c_int;
        fn gai_cancel(request: *mut Gaicb) -> libc::c_int;
    }

    /// A question that one of the C library's threads may be working on.
    struct Request {
        gaicb: Gaicb,
        hints: libc::addrinfo,
        /// What the pointers in `gaicb` lead to.
        _question: Question,
    }

    /// A request on the heap, by its address alone: while a thread of the C library's writes to
    /// it, there must be no reference to it. What is not settled is leaked.
    struct Pending(*mut Request);

    // SAFETY: the C library does not care which thread asks about a request.
    unsafe impl Send for Pending {}

    /// Requests that were given up and are still worked on. What is in here when the plugin is
    /// unloaded stays where it is for good.
    static GIVEN_UP: Mutex<Vec<Pending>> = Mutex::new(Vec::new());

    /// The process whose threads do the work, once there was a request.
    static PROCESS: AtomicU32 = AtomicU32::new(0);

    /// Asks in a thread of the C library's.
    pub fn by_library(question: Question, deadline: Deadline) -> Result<Vec<SocketAddr>, Error> {
        let process = std::process::id();
        let first = PROCESS.compare_exchange(0, process, Ordering::Relaxed, Ordering::Relaxed);
        if first.is_err_and(|known| known != process) {
            // This process was forked from the one with the threads, by somebody who cannot know.
            // Being held is better than never to get an answer.
            return question.answer_now(0);
        }
        free_given_up();
        let mut pending = Pending::new(question)?;
        let waited = pending.wait(deadline);
        loop {
            pending = match (pending.settle(), &waited) {
                (Ok(request), Ok(())) => return request.answer(),
                (Ok(_), Err(error)) => return Err(error.clone()),
                // Its thread is about to let go of it.
                (Err(busy), Ok(())) => busy,
                (Err(busy), Err(error)) => {
                    given_up().push(busy);
                    return Err(error.clone());
                }
            };
            std::thread::yield_now();
        }
    }

    fn given_up() -> std::sync::MutexGuard<'static, Vec<Pending>> {
        GIVEN_UP.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Frees what has been answered since it was given up.
    fn free_given_up() {
        let mut list = given_up();
        *list = list.drain(..).filter_map(|p| p.settle().err()).collect();
    }

    impl Pending {
        fn new(question: Question) -> Result<Self, Error> {
            let mut request = Box::new(Request {
                gaicb: Gaicb {
                    name: question.host.as_ptr(),
                    service: question.port.as_ptr(),
                    request: null(),
                    result: null_mut(),
                    state: 0,
                    reserved: [0; 5],
                },
                hints: hints(0),
                _question: question,
            });
            request.gaicb.request = &raw const request.hints;
            let pending = Self(Box::into_raw(request));
            // The list itself is not used after the call.
            let list = [pending.gaicb()];
            // SAFETY: one request, whose parts stay where they are until it is settled; no event.
            let code = unsafe { getaddrinfo_a(GAI_NOWAIT, list.as_ptr(), 1, null_mut()) };
            if code == 0 {
                return Ok(pending);
            }
            drop(pending.settle());
            Err(Error::Resolve(meaning(code)))
        }

        fn gaicb(&self) -> *mut Gaicb {
            // SAFETY: the request is alive; only the address of a part of it is taken.
            unsafe { &raw mut (*self.0).gaicb }
        }

        /// Waits for an answer.
        fn wait(&self, deadline: Deadline) -> Result<(), Error> {
            let list = [self.gaicb().cast_const()];
            loop {
                // SAFETY: the request is alive.
                if unsafe { gai_error(self.gaicb()) } != EAI_INPROGRESS {
                    return Ok(());
                }
                check(deadline)?;
                let timeout = deadline.timespec().map(|time| libc::timespec {
                    tv_sec: time.tv_sec as _,
                    tv_nsec: time.tv_nsec as _,
                });
                let timeout = timeout.as_ref().map_or(null(), std::ptr::from_ref);
                // Whatever it says, the state of the request decides.
                // SAFETY: one request, which is alive, and a time or none.
                unsafe { gai_suspend(list.as_ptr(), 1, timeout) };
            }
        }

        /// Takes the request back, unless it is being worked on. The C library has its lock for
        /// that, so that what its thread wrote is seen here.
        fn settle(self) -> Result<Box<Request>, Self> {
            // SAFETY: the request is alive.
            if unsafe { gai_cancel(self.gaicb()) } == EAI_NOTCANCELED {
                return Err(self);
            }
            // SAFETY: it came from a box, and nobody but us knows of it any more.
            Ok(unsafe { Box::from_raw(self.0) })
        }
    }

    impl Request {
        /// What was answered. It must have been.
        fn answer(mut self) -> Result<Vec<SocketAddr>, Error> {
            let list = std::mem::replace(&mut self.gaicb.result, null_mut());
            // SAFETY: the list is the one that getaddrinfo made, and ours now.
            unsafe { Answer::take(self.gaicb.state, list) }
        }
    }

    impl Drop for Request {
        fn drop(&mut self) {
            drop(Answer(self.gaicb.result));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn soon() -> Deadline {
        Deadline::after(Duration::from_secs(10))
    }

    /// Both ways to ask that do not fork, which a test among others must not do.
    fn ways(host: &str, port: &str) -> [Result<Vec<SocketAddr>, Error>; 2] {
        let question = || Question::new(host, port).expect("no zero bytes");
        [by_library(question(), soon()), question().answer_now(0)]
    }

    #[test]
    fn names_and_numbers_have_addresses() {
        for answer in ways("localhost", "10809") {
            let addresses = answer.expect("localhost is known everywhere");
            assert!(addresses.iter().all(|address| address.ip().is_loopback()));
            assert!(addresses.iter().all(|address| address.port() == 10809));
        }
        let port = |host| resolve(host, "7", soon()).expect("a number")[0];
        assert_eq!(port("192.0.2.1").to_string(), "192.0.2.1:7");
        assert_eq!(port("2001:db8::1").to_string(), "[2001:db8::1]:7");
    }

    #[test]
    fn an_address_comes_once() {
        for answer in ways("127.0.0.1", "1") {
            assert_eq!(answer.map(|addresses| addresses.len()), Ok(1));
        }
    }

    #[test]
    fn what_has_no_address_is_an_error() {
        for answer in ways("127.0.0.1", "no-such-service") {
            assert!(matches!(answer, Err(Error::Resolve(_))), "{answer:?}");
        }
        assert!(Question::new("a\0b", "1").is_err());
    }

    #[test]
    fn services_are_known_or_not() {
        assert_eq!(knows_service("80", soon()), Some(true));
        assert_eq!(knows_service("no-such-service", soon()), Some(false));
    }

    #[test]
    fn a_deadline_that_has_passed_leaves_nothing_behind() {
        // A name with a dot, so that it takes its time where there is a resolver.
        let question = Question::new("a.invalid", "1").expect("no zero bytes");
        let brief = Duration::from_nanos(1);
        let answer = by_library(question, Deadline::after(brief));
        // An answer that is there already counts.
        assert!(answer.is_err(), "{answer:?}");
    }

    #[test]
    fn an_answer_survives_the_pipe() {
        let addresses: Vec<SocketAddr> = vec![
            "192.0.2.1:10809".parse().expect("IPv4"),
            "[fe80::1%3]:1".parse().expect("IPv6 with a zone"),
        ];
        let text: String = addresses.iter().map(|a| format!("{a}\n")).collect();
        assert_eq!(decode(text.as_bytes()), Ok(addresses));
        assert_eq!(
            decode(b"!no such name"),
            Err(Error::Resolve("no such name".to_owned()))
        );
        assert!(decode(b"").is_err());
    }

    #[test]
    fn a_silent_child_is_given_up_at_the_deadline() {
        let (ours, _theirs) = pipe_with(PipeFlags::CLOEXEC).expect("pipe");
        let brief = Duration::from_millis(10);
        assert_eq!(
            receive_answer(&ours, Deadline::after(brief)),
            Err(Error::TimeoutDuring {
                after: brief,
                what: "the name was still being looked up"
            })
        );
    }
}
