//! The requests in flight on one connection, and the role of reading replies for all of them.
//!
//! A request occupies a slot from [`Inflight::claim`] until its [`Ticket`] is finished. It is over
//! when two things have happened, in either order: all of it was sent, and all of its reply was
//! received (a server may answer a write before it took the payload).
//!
//! Nobody is employed to read. Whoever waits for a reply takes the reading role if it is free and
//! then receives for everybody, until its own reply is complete; the others sleep and are woken
//! when their reply is complete or when the role needs a new holder. The role is a value, the
//! reader `R`: to hold it is to be the one thread that may receive. Three things keep it from
//! getting lost: a sleeper registers under the lock that guards the role, and nobody is registered
//! who has left; who gives the role back wakes a registered sleeper; and a wake-up that comes before its sleep makes the sleep return
//! at once.
//!
//! The table knows when a slot's load may be touched, not what it is: the load `P` is reached only
//! through the slot's lock, and leaves it with the ticket. See `loan.rs` for what rests on that.

use super::sync::{AtomicU32, Condvar, Mutex, MutexGuard, Ordering, Sleeper, Waker, lock, sleeper};
use crate::proto::request::Cookie;
use crate::transport::{Deadline, Doorbell};

/// Requests that may be in flight at once. nbdkit has 16 workers for each client unless told
/// otherwise; whoever comes when all slots are taken waits for one.
pub const SLOTS: usize = if cfg!(loom) { 2 } else { 64 };
const ALL: u64 = u64::MAX >> (64 - SLOTS);

/// Progress of a request: all of it has been sent.
const SENT: u32 = 1;
/// Progress of a request: all of its reply has been received.
const REPLIED: u32 = 2;
const OVER: u32 = SENT | REPLIED;
/// Not progress but a call: the owner has been given the duty of sending (`outbox.rs`).
const DUTY: u32 = 4;

/// A set of slots, one bit each.
pub type SlotSet = u64;

/// The table of requests in flight.
#[derive(Debug)]
pub struct Inflight<P, R> {
    slots: Box<[Slot<P>]>,
    free: Mutex<Free>,
    room: Condvar,
    reading: Mutex<Reading<R>>,
    doorbell: Doorbell,
}

/// Aligned to two cache lines, the distance at which neighbours do not disturb each other.
#[derive(Debug)]
#[repr(align(128))]
struct Slot<P> {
    progress: AtomicU32,
    cell: Mutex<Cell<P>>,
}

#[derive(Debug)]
struct Cell<P> {
    generation: u64,
    owner: Option<Waker>,
    load: Option<P>,
}

#[derive(Debug)]
struct Free {
    slots: SlotSet,
    waiting: usize,
}

#[derive(Debug)]
struct Reading<R> {
    /// The role, while nobody holds it.
    reader: Option<R>,
    /// Who sleeps and would take the role.
    sleepers: SlotSet,
    /// A sender cannot go on until the server reads, and will take the role when the bell rings.
    sender_waits: bool,
}

impl<P, R> Inflight<P, R> {
    /// An empty table, and the role with nobody.
    pub fn new(reader: R, doorbell: Doorbell) -> Self {
        let slot = |_| Slot {
            progress: AtomicU32::new(OVER),
            cell: Mutex::new(Cell {
                generation: 0,
                owner: None,
                load: None,
            }),
        };
        Self {
            slots: (0..SLOTS).map(slot).collect(),
            free: Mutex::new(Free {
                slots: ALL,
                waiting: 0,
            }),
            room: Condvar::new(),
            reading: Mutex::new(Reading {
                reader: Some(reader),
                sleepers: 0,
                sender_waits: false,
            }),
            doorbell,
        }
    }

    /// Takes a slot for the load that `load` makes of its cookie; waits while all are taken.
    pub fn claim(&self, load: impl FnOnce(Cookie) -> P) -> Ticket<'_, P, R> {
        let index = self.take_slot();
        let slot = &self.slots[index];
        let mut cell = lock(&slot.cell);
        cell.generation += 1;
        let (sleeper, waker) = sleeper();
        cell.owner = Some(waker);
        cell.load = Some(load(cookie(index, cell.generation)));
        slot.progress.store(0, Ordering::Release);
        Ticket {
            table: self,
            index,
            sleeper,
            registered: std::cell::Cell::new(false),
        }
    }

    /// Whether no request is in flight.
    pub fn is_idle(&self) -> bool {
        lock(&self.free).slots == ALL
    }

    /// Runs `work` on the load with this cookie, with its slot's index. `None` if no such request
    /// awaits a reply: then the server made the cookie up, or repeated an old one.
    pub fn with_cookie<T>(
        &self,
        cookie: Cookie,
        work: impl FnOnce(usize, &mut P) -> T,
    ) -> Option<T> {
        let index = (cookie.0 & 0xff) as usize;
        let slot = self.slots.get(index)?;
        let mut cell = lock(&slot.cell);
        if cell.generation != cookie.0 >> 8 || slot.progress.load(Ordering::Acquire) & REPLIED != 0
        {
            return None;
        }
        cell.load.as_mut().map(|load| work(index, load))
    }

    /// The load in a slot, under its lock.
    pub fn load(&self, index: usize) -> LoadGuard<'_, P> {
        LoadGuard {
            cell: lock(&self.slots[index].cell),
        }
    }

    /// Notes that all of the request was sent. Wakes its owner if that was the last thing missing.
    pub fn sent(&self, index: usize) {
        if self.mark(index, SENT) {
            self.wake(1 << index);
        }
    }

    /// Notes that all of the reply was received. True if that was the last thing missing: then the
    /// caller wakes the owner, when it suits. Only the holder of the reading role may call this.
    #[must_use]
    pub fn replied(&self, index: usize) -> bool {
        self.mark(index, REPLIED)
    }

    /// Ends every request that still awaits its reply, after `tell` was told its load. Only the
    /// holder of the reading role may call this.
    pub fn abandon(&self, mut tell: impl FnMut(&mut P)) {
        for (index, slot) in self.slots.iter().enumerate() {
            let mut cell = lock(&slot.cell);
            let pending = slot.progress.load(Ordering::Acquire) & REPLIED == 0;
            let over = match &mut cell.load {
                Some(load) if pending => {
                    tell(load);
                    self.mark(index, REPLIED)
                }
                _ => false,
            };
            drop(cell);
            if over {
                self.wake(1 << index);
            }
        }
    }

    /// Wakes the owners of these slots.
    pub fn wake(&self, mut slots: SlotSet) {
        while slots != 0 {
            let index = slots.trailing_zeros() as usize;
            slots &= slots - 1;
            let owner = lock(&self.slots[index].cell).owner.clone();
            // Not under the lock: the first thing a woken owner does is to take it.
            if let Some(owner) = owner {
                owner.wake();
            }
        }
    }

    /// The reading role, if nobody has it.
    pub fn try_read(&self) -> Option<ReadingRole<'_, P, R>> {
        let reader = lock(&self.reading).reader.take()?;
        Some(ReadingRole {
            table: self,
            reader: Some(reader),
        })
    }

    /// The reading role for a sender that cannot go on. If somebody has it, the doorbell rings
    /// when it is given back and no sleeper takes it.
    pub fn try_read_as_sender(&self) -> Option<ReadingRole<'_, P, R>> {
        let mut reading = lock(&self.reading);
        let reader = reading.reader.take();
        reading.sender_waits = reader.is_none();
        reader.map(|reader| ReadingRole {
            table: self,
            reader: Some(reader),
        })
    }

    /// What rings when a waiting sender should ask for the reading role again.
    pub fn doorbell(&self) -> &Doorbell {
        &self.doorbell
    }

    fn take_slot(&self) -> usize {
        let mut free = lock(&self.free);
        while free.slots == 0 {
            free.waiting += 1;
            free = self
                .room
                .wait(free)
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            free.waiting -= 1;
        }
        let index = free.slots.trailing_zeros() as usize;
        free.slots &= free.slots - 1;
        index
    }

    fn give_slot_back(&self, index: usize) {
        let mut free = lock(&self.free);
        free.slots |= 1 << index;
        let wanted = free.waiting > 0;
        drop(free);
        if wanted {
            self.room.notify_one();
        }
    }

    /// Gives the duty of sending to the first of these owners that is free for it: asleep, and not
    /// the one that reads. False if none is.
    #[must_use]
    pub fn pass_duty(&self, candidates: impl Iterator<Item = usize>) -> bool {
        let mut reading = lock(&self.reading);
        let mut candidates = candidates;
        let Some(index) = candidates.find(|index| reading.sleepers & (1 << index) != 0) else {
            return false;
        };
        // Under the lock: should its owner be about to take the reading role, it finds the call
        // right after.
        reading.sleepers &= !(1 << index);
        self.slots[index].progress.fetch_or(DUTY, Ordering::AcqRel);
        drop(reading);
        self.wake(1 << index);
        true
    }

    /// Whether all of the reply was received.
    pub fn is_replied(&self, index: usize) -> bool {
        self.progress(index) & REPLIED != 0
    }

    fn mark(&self, index: usize, what: u32) -> bool {
        let before = self.slots[index].progress.fetch_or(what, Ordering::AcqRel);
        before & OVER != OVER && (before | what) & OVER == OVER
    }

    fn progress(&self, index: usize) -> u32 {
        self.slots[index].progress.load(Ordering::Acquire)
    }

    /// Takes the role for the owner of a slot, or registers it as a sleeper.
    fn read_or_register(&self, index: usize) -> Option<ReadingRole<'_, P, R>> {
        let mut reading = lock(&self.reading);
        let reader = reading.reader.take();
        if reader.is_some() {
            reading.sleepers &= !(1 << index);
        } else {
            reading.sleepers |= 1 << index;
        }
        reader.map(|reader| ReadingRole {
            table: self,
            reader: Some(reader),
        })
    }

    /// Puts the role back and sees to it that somebody takes it who needs it.
    fn give_role_back(&self, reader: R) {
        let mut reading = lock(&self.reading);
        reading.reader = Some(reader);
        let mut heir = None;
        while reading.sleepers != 0 && heir.is_none() {
            let index = reading.sleepers.trailing_zeros() as usize;
            reading.sleepers &= reading.sleepers - 1;
            // An owner whose reply is complete does not want the role.
            if self.progress(index) & REPLIED == 0 {
                heir = Some(index);
            }
        }
        let ring = heir.is_none() && std::mem::take(&mut reading.sender_waits);
        drop(reading);
        if let Some(index) = heir {
            self.wake(1 << index);
        }
        if ring {
            self.doorbell.ring();
        }
    }
}

fn cookie(index: usize, generation: u64) -> Cookie {
    Cookie(generation << 8 | index as u64)
}

/// A load under its slot's lock.
pub struct LoadGuard<'t, P> {
    cell: MutexGuard<'t, Cell<P>>,
}

impl<P> LoadGuard<'_, P> {
    /// The load, unless its owner has left.
    pub fn get(&self) -> Option<&P> {
        self.cell.load.as_ref()
    }
}

/// The ownership of one slot.
#[derive(Debug)]
pub struct Ticket<'t, P, R> {
    table: &'t Inflight<P, R>,
    index: usize,
    sleeper: Sleeper,
    /// Has been a sleeper at some time, and may be registered as one still.
    registered: std::cell::Cell<bool>,
}

impl<P, R> Ticket<'_, P, R> {
    /// Which slot.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Waits until the request is over. `read` is called, again and again, while this thread holds
    /// the reading role: it receives something and deals with it, or abandons all requests. `send`
    /// is called when this thread was given the duty of sending. At the deadline `expire` is called
    /// once, which must make the request end soon.
    pub fn wait(
        &self,
        deadline: Deadline,
        expire: impl FnOnce(),
        mut send: impl FnMut(),
        mut read: impl FnMut(&mut R),
    ) {
        let mut deadline = deadline;
        let mut expire = Some(expire);
        loop {
            let progress = self.table.progress(self.index);
            if progress & DUTY != 0 {
                self.table.slots[self.index]
                    .progress
                    .fetch_and(!DUTY, Ordering::AcqRel);
                send();
                continue;
            }
            if progress == OVER {
                return;
            }
            if progress & REPLIED == 0 {
                match self.table.read_or_register(self.index) {
                    // The duty comes first, and must not wait behind a blocking receive.
                    Some(_) if self.table.progress(self.index) & DUTY != 0 => continue,
                    Some(mut role) => {
                        while self.table.progress(self.index) & REPLIED == 0 {
                            read(role.reader());
                        }
                        continue;
                    }
                    None => self.registered.set(true),
                }
            }
            let left = deadline.remaining();
            if left.is_none_or(|left| !left.is_zero()) {
                self.sleeper.sleep(left);
            } else {
                deadline = Deadline::NEVER;
                if let Some(expire) = expire.take() {
                    expire();
                }
            }
        }
    }

    /// Gives the slot back and takes the load out of it.
    pub fn finish(self) -> P {
        let load = lock(&self.table.slots[self.index].cell).load.take();
        // `self` is dropped next, which gives the slot back.
        load.expect("a load stays in its slot until its ticket is finished")
    }
}

impl<P, R> Drop for Ticket<'_, P, R> {
    fn drop(&mut self) {
        let slot = &self.table.slots[self.index];
        // Usually gone already. After a panic it is not, and the buffers it refers to are about to
        // disappear: whoever uses them does so under this lock.
        let load = lock(&slot.cell).load.take();
        drop(load);
        slot.progress.store(OVER, Ordering::Release);
        if self.registered.get() {
            // Or the slot's next owner would be taken for a sleeper.
            lock(&self.table.reading).sleepers &= !(1 << self.index);
        }
        self.table.give_slot_back(self.index);
    }
}

/// The reading role. Dropping it, also in a panic, passes it on.
pub struct ReadingRole<'t, P, R> {
    table: &'t Inflight<P, R>,
    reader: Option<R>,
}

impl<P, R> ReadingRole<'_, P, R> {
    /// What its holder receives with.
    pub fn reader(&mut self) -> &mut R {
        self.reader.as_mut().expect("held until dropped")
    }
}

impl<P, R> Drop for ReadingRole<'_, P, R> {
    fn drop(&mut self) {
        if let Some(reader) = self.reader.take() {
            self.table.give_role_back(reader);
        }
    }
}

#[cfg(test)]
mod tests;
