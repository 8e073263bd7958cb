// SPDX-License-Identifier: BSD-3-Clause
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
//! getting lost: who waits registers as an heir under the lock that guards the role, and nobody is
//! registered who has left or is to send; who gives the role back calls an heir; and a call that
//! comes before the sleep prevents it.
//!
//! Who waits for long while others come and go would receive for them all, and every answer would
//! take two wake-ups. So a reader that has only served others for a while, and knows of nobody who
//! waits, gives the role back and watches the stream from a [`Lookout`]: whoever comes takes the
//! role and receives by itself, and while somebody does nobody looks.
//!
//! Waking costs more than anything else here, so it is done rarely and for many at once: who is
//! awake is not woken, and a reader that leaves wakes all whose replies it received together with
//! its heir.
//!
//! The table knows when a slot's load may be touched, not what it is: the load `P` is reached only
//! through the slot's lock, and leaves it with the ticket. See `loan.rs` for what rests on that.

mod watch;

use super::sync::{AtomicU32, Berths, Condvar, Lookout, Mutex, MutexGuard, Ordering, lock, wait};
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
/// A call: the reading role is free, and the owner should ask for it again.
const ROLE: u32 = 8;
/// The owner sleeps or is about to: whoever completes its request or calls it must wake it.
const ASLEEP: u32 = 16;
/// A call: the request has waited for long, and the owner should find out whether anybody still
/// wants the answer.
const LOOK: u32 = 32;

/// Rounds in a row that ended others' requests, and not the reader's own, after which it would
/// rather watch.
const ENOUGH: u32 = if cfg!(loom) { 1 } else { 4 };

/// A set of slots, one bit each.
pub type SlotSet = u64;

/// The requests that an [`Inflight::inspect`] found, by their slots' generations. None at first.
#[derive(Debug, Default)]
pub struct Seen {
    generations: Vec<u64>,
}

/// Stands for the generation of a request whose slot is being worked on.
const BUSY: u64 = u64::MAX;

/// The table of requests in flight.
#[derive(Debug)]
pub struct Inflight<P, R> {
    slots: Box<[Slot<P>]>,
    free: Mutex<Free>,
    room: Condvar,
    reading: Mutex<Reading<R>>,
    berths: Berths,
    doorbell: Doorbell,
    /// Where to watch the stream from, if it can be watched.
    lookout: Option<Lookout>,
    /// Who watches: 0 for nobody, else its slot and one. Changed under the lock of the role.
    watcher: AtomicU32,
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
    /// Who would take the role: owners that sleep, or are about to or have just been woken.
    heirs: SlotSet,
    /// A sender cannot go on until the server reads, and will take the role when the bell rings.
    sender_waits: bool,
}

impl<P, R> Inflight<P, R> {
    /// An empty table, and the role with nobody.
    pub fn new(reader: R, doorbell: Doorbell, lookout: Option<Lookout>) -> Self {
        let slot = |_| Slot {
            progress: AtomicU32::new(OVER),
            cell: Mutex::new(Cell {
                generation: 0,
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
                heirs: 0,
                sender_waits: false,
            }),
            berths: Berths::default(),
            doorbell,
            lookout,
            watcher: AtomicU32::new(0),
        }
    }

    /// Takes a slot for the load that `load` makes of its cookie; waits while all are taken, but not
    /// beyond the deadline: then there is none.
    pub fn claim(
        &self,
        deadline: &Deadline,
        load: impl FnOnce(Cookie) -> P,
    ) -> Option<Ticket<'_, P, R>> {
        let index = self.take_slot(deadline)?;
        let slot = &self.slots[index];
        let mut cell = lock(&slot.cell);
        cell.generation += 1;
        cell.load = Some(load(cookie(index, cell.generation)));
        slot.progress.store(0, Ordering::Release);
        Some(Ticket {
            table: self,
            index,
            registered: std::cell::Cell::new(false),
            finished: false,
        })
    }

    /// Whether no request is in flight.
    pub fn is_idle(&self) -> bool {
        lock(&self.free).slots == ALL
    }

    /// How many requests are in flight.
    pub fn count(&self) -> u32 {
        (ALL & !lock(&self.free).slots).count_ones()
    }

    /// Whether there was never any request: the first one takes the first slot.
    pub fn is_unused(&self) -> bool {
        let first = self.slots.first();
        first.is_none_or(|slot| lock(&slot.cell).generation == 0)
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

    /// Notes that all of the request was sent. Returns whom to wake, when it suits: the owner, if
    /// that was the last thing missing and it sleeps.
    #[must_use]
    pub fn sent(&self, index: usize) -> SlotSet {
        self.mark(index, SENT)
    }

    /// Notes that all of the reply was received. Returns whom to wake, when it suits: the owner,
    /// if that was the last thing missing and it sleeps. Only the holder of the reading role may
    /// call this.
    #[must_use]
    pub fn replied(&self, index: usize) -> SlotSet {
        self.mark(index, REPLIED)
    }

    /// Ends every request that still awaits its reply, after `tell` was told its load. Only the
    /// holder of the reading role may call this.
    pub fn abandon(&self, mut tell: impl FnMut(&mut P)) {
        let mut over = 0;
        for (index, slot) in self.slots.iter().enumerate() {
            let mut cell = lock(&slot.cell);
            let pending = slot.progress.load(Ordering::Acquire) & REPLIED == 0;
            if let Some(load) = cell.load.as_mut().filter(|_| pending) {
                tell(load);
                over |= self.mark(index, REPLIED);
            }
        }
        self.wake(over);
    }

    /// Wakes the owners of these slots.
    pub fn wake(&self, slots: SlotSet) {
        if slots == 0 {
            return;
        }
        let watcher = self.watcher();
        if slots & watcher != 0 {
            self.lookout.iter().for_each(Lookout::call);
        }
        if slots & !watcher != 0 {
            self.berths.wake(slots & !watcher);
        }
    }

    /// Looks for a request that was in flight when `seen` was last brought up to date, and still is.
    /// Calls its owner, which then finds out whether it should wait on. Returns whether there is one.
    pub fn inspect(&self, seen: &mut Seen) -> bool {
        seen.generations.resize(SLOTS, 0);
        let mut stale = None;
        for (index, (slot, seen)) in self.slots.iter().zip(&mut seen.generations).enumerate() {
            // A receive into a caller's buffer holds the slot's lock, and may take its time.
            let now = match slot.cell.try_lock() {
                _ if self.progress(index) & OVER == OVER => 0,
                Ok(cell) => cell.generation,
                Err(_) => BUSY,
            };
            if now != 0 && (now == *seen || (now == BUSY && *seen != 0)) {
                stale.get_or_insert(index);
            }
            if now != BUSY || *seen == 0 {
                *seen = now;
            }
        }
        if let Some(index) = stale {
            self.wake(self.call(index, LOOK));
        }
        stale.is_some()
    }

    /// The reading role, if nobody has it.
    pub fn try_read(&self) -> Option<ReadingRole<'_, P, R>> {
        let reader = lock(&self.reading).reader.take()?;
        Some(self.role(reader))
    }

    /// The reading role for a sender that cannot go on. If somebody has it, the doorbell rings
    /// when it is given back and no heir takes it.
    pub fn try_read_as_sender(&self) -> Option<ReadingRole<'_, P, R>> {
        let mut reading = lock(&self.reading);
        let reader = reading.reader.take();
        reading.sender_waits = reader.is_none();
        reader.map(|reader| self.role(reader))
    }

    /// What rings when a waiting sender should ask for the reading role again.
    pub fn doorbell(&self) -> &Doorbell {
        &self.doorbell
    }

    fn role(&self, reader: R) -> ReadingRole<'_, P, R> {
        ReadingRole {
            table: self,
            reader: Some(reader),
            over: 0,
        }
    }

    fn take_slot(&self, deadline: &Deadline) -> Option<usize> {
        let mut free = lock(&self.free);
        while free.slots == 0 {
            let left = deadline.remaining();
            if left.is_some_and(|left| left.is_zero()) {
                return None;
            }
            free.waiting += 1;
            free = wait(&self.room, free, left);
            free.waiting -= 1;
        }
        let index = free.slots.trailing_zeros() as usize;
        free.slots &= free.slots - 1;
        Some(index)
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

    /// Gives the duty of sending to the first of these owners that is free for it: it waits, and is
    /// not the one that reads. Returns whom to wake for that; `None` if nobody is free.
    #[must_use]
    pub fn pass_duty(&self, mut owners: impl Iterator<Item = usize>) -> Option<SlotSet> {
        let mut reading = lock(&self.reading);
        let index = owners.find(|index| reading.heirs & (1 << index) != 0)?;
        // Under the lock: who registers as an heir looks for the duty first.
        reading.heirs &= !(1 << index);
        Some(self.call(index, DUTY))
    }

    /// Answers a call to look, for an owner that does not wait but sends.
    pub fn is_to_look(&self, index: usize) -> bool {
        self.progress(index) & LOOK != 0
            && self.slots[index]
                .progress
                .fetch_and(!LOOK, Ordering::AcqRel)
                & LOOK
                != 0
    }

    /// Whether all of the reply was received.
    pub fn is_replied(&self, index: usize) -> bool {
        self.progress(index) & REPLIED != 0
    }

    /// Adds to a request's progress. Returns its owner, to be woken, if it is over now and the
    /// owner sleeps.
    fn mark(&self, index: usize, what: u32) -> SlotSet {
        let before = self.slots[index].progress.fetch_or(what, Ordering::AcqRel);
        let over = before & OVER != OVER && (before | what) & OVER == OVER;
        SlotSet::from(over && before & ASLEEP != 0) << index
    }

    /// Calls the owner of a slot. Returns it, to be woken, if it sleeps.
    fn call(&self, index: usize, what: u32) -> SlotSet {
        let before = self.slots[index].progress.fetch_or(what, Ordering::AcqRel);
        SlotSet::from(before & ASLEEP != 0) << index
    }

    fn progress(&self, index: usize) -> u32 {
        self.slots[index].progress.load(Ordering::Acquire)
    }

    /// Takes the role for the owner of a slot, or registers it as an heir; neither if it has the
    /// duty of sending. The duty must not wait behind a blocking receive; and who sends may wait
    /// for the doorbell, which would stay silent if it were the heir.
    fn read_or_register(&self, index: usize) -> Option<ReadingRole<'_, P, R>> {
        let mut reading = lock(&self.reading);
        if self.progress(index) & DUTY != 0 {
            return None;
        }
        let reader = reading.reader.take();
        if reader.is_some() {
            reading.heirs &= !(1 << index);
        } else {
            reading.heirs |= 1 << index;
        }
        let watched = reader.is_some() && self.watcher() != 0;
        drop(reading);
        if watched {
            self.look(false);
        }
        reader.map(|reader| self.role(reader))
    }

    /// Puts the role back and sees to it that somebody takes it who needs it. Wakes `over`, too.
    fn give_role_back(&self, reader: R, over: SlotSet) {
        let mut wake = over;
        let mut heir = false;
        let mut reading = lock(&self.reading);
        reading.reader = Some(reader);
        while reading.heirs != 0 && !heir {
            let index = reading.heirs.trailing_zeros() as usize;
            reading.heirs &= reading.heirs - 1;
            // An owner whose reply is complete does not want the role.
            if self.progress(index) & REPLIED == 0 {
                heir = true;
                wake |= self.call(index, ROLE);
            }
        }
        let ring = !heir && std::mem::take(&mut reading.sender_waits);
        let watched = !heir && self.watcher() != 0;
        drop(reading);
        if watched {
            // Not before the role is free: who sees something then must find it free, or be its heir.
            self.look(true);
        }
        self.wake(wake);
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
    /// Has been an heir at some time, and may be registered as one still.
    registered: std::cell::Cell<bool>,
    /// The load has been taken out of the slot.
    finished: bool,
}

impl<P, R> Ticket<'_, P, R> {
    /// Which slot.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Waits until the request is over. `read` is called, again and again, while this thread holds
    /// the reading role: it receives something and deals with it, or abandons all requests; it must
    /// come back once in a while also if nothing arrives. `send` is called when this thread was given
    /// the duty of sending, `look` when the request has waited for long (see
    /// [`Inflight::inspect`]). At the deadline `expire` is called once, which must make the request
    /// end soon.
    pub fn wait(
        &self,
        deadline: &Deadline,
        expire: impl FnOnce(),
        mut look: impl FnMut(),
        mut send: impl FnMut(),
        mut read: impl FnMut(&mut ReadingRole<'_, P, R>),
    ) {
        let mut expire = Some(expire);
        let mut served = 0;
        loop {
            let progress = self.answer_calls();
            if progress & DUTY != 0 {
                send();
                continue;
            }
            if progress & OVER == OVER {
                return;
            }
            if progress & LOOK != 0 {
                look();
            }
            if progress & REPLIED == 0 {
                match self.table.read_or_register(self.index) {
                    Some(mut role) => {
                        loop {
                            read(&mut role);
                            if self.table.progress(self.index) & (REPLIED | LOOK) != 0 {
                                break;
                            }
                            served = if role.over == 0 { 0 } else { served + 1 };
                            role.wake();
                            if served >= ENOUGH {
                                if let Some(lookout) = self.table.appoint(self.index) {
                                    drop(role);
                                    self.watch(lookout, deadline);
                                    // It knows already that it waits for long.
                                    served = ENOUGH - 1;
                                    break;
                                }
                            }
                        }
                        continue;
                    }
                    None => self.registered.set(true),
                }
            }
            // Once it has expired there is nothing but the end to wait for.
            let left = expire.as_ref().and_then(|_| deadline.remaining());
            if left.is_none_or(|left| !left.is_zero()) {
                let epoch = self.table.berths.epoch(self.index);
                if self.lie_down(progress) {
                    self.table.berths.sleep(self.index, epoch, left);
                }
            } else if let Some(expire) = expire.take() {
                expire();
            }
        }
    }

    /// Takes the calls and withdraws [`ASLEEP`]; returns the progress with what was called.
    fn answer_calls(&self) -> u32 {
        let progress = self.table.progress(self.index);
        if progress & !OVER == 0 {
            return progress;
        }
        self.table.slots[self.index]
            .progress
            .fetch_and(OVER, Ordering::AcqRel)
    }

    /// Announces sleep. False if the progress is not what it was when the owner last looked.
    fn lie_down(&self, seen: u32) -> bool {
        let before = self.table.slots[self.index]
            .progress
            .fetch_or(ASLEEP, Ordering::AcqRel);
        before == seen & OVER
    }

    /// Gives the slot back and takes the load out of it.
    pub fn finish(mut self) -> P {
        let load = lock(&self.table.slots[self.index].cell).load.take();
        self.finished = true;
        // `self` is dropped next, which gives the slot back.
        load.expect("a load stays in its slot until its ticket is finished")
    }
}

impl<P, R> Drop for Ticket<'_, P, R> {
    fn drop(&mut self) {
        let slot = &self.table.slots[self.index];
        if !self.finished {
            // A panic. The buffers that the load refers to are about to disappear: whoever uses them
            // does so under this lock.
            let load = lock(&slot.cell).load.take();
            drop(load);
        }
        slot.progress.store(OVER, Ordering::Release);
        if self.registered.get() {
            // Or the slot's next owner would be taken for an heir.
            lock(&self.table.reading).heirs &= !(1 << self.index);
        }
        self.table.give_slot_back(self.index);
    }
}

/// The reading role. Dropping it, also in a panic, passes it on.
pub struct ReadingRole<'t, P, R> {
    table: &'t Inflight<P, R>,
    reader: Option<R>,
    /// Whose requests are over and who are not woken yet. Never kept across a receive that may
    /// block.
    over: SlotSet,
}

impl<P, R> ReadingRole<'_, P, R> {
    /// What its holder receives with, and whose requests are over because of what was received:
    /// they are woken before the next receive, or with the heir when this is dropped.
    pub fn parts(&mut self) -> (&mut R, &mut SlotSet) {
        let reader = self.reader.as_mut().expect("held until dropped");
        (reader, &mut self.over)
    }

    fn wake(&mut self) {
        self.table.wake(std::mem::take(&mut self.over));
    }
}

impl<P, R> Drop for ReadingRole<'_, P, R> {
    fn drop(&mut self) {
        if let Some(reader) = self.reader.take() {
            self.table.give_role_back(reader, self.over);
        }
    }
}

#[cfg(test)]
mod tests;
