// SPDX-License-Identifier: BSD-3-Clause
//! The simulated server: blocks in permanent storage, a volatile cache, connections, and requests
//! that it carries out in any order.

use std::collections::BTreeMap;

use super::dice::Dice;

/// What a block holds: one value for each change, so that each can be told from all others; zeroes
/// are 0.
pub(super) type Value = u16;

/// What a server promises about its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `NBD_FLAG_CAN_MULTI_CONN`: one cache, and a flush makes everything in it permanent.
    Multi,
    /// Without the flag, yet with one cache like most servers.
    Common,
    /// Without the flag: a flush makes permanent what came over its own connection, and what is not
    /// permanent may go with the connection. Of two writes the later one stays, whichever is flushed.
    Separate,
}

/// One block.
#[derive(Clone, Debug)]
struct Cell {
    /// What permanent storage may hold: after a death any of what was not flushed.
    stored: Vec<Value>,
    /// What a read finds; `None` for what is stored, whatever that is.
    current: Option<Value>,
    /// What is in the cache and not known to be permanent, by connection, in order.
    dirty: Vec<(Value, usize)>,
}

#[derive(Clone, Debug)]
pub(super) enum What {
    /// These values from a block on; permanent with the answer if `lasting`.
    Change {
        from: usize,
        values: Vec<Value>,
        lasting: bool,
    },
    Read {
        from: usize,
        to: usize,
    },
    Flush,
}

/// Who waits for the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    Op(usize),
    /// A client that comes back writes the journal again.
    Link(usize),
}

#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) connection: usize,
    pub(super) by: By,
    pub(super) what: What,
    /// The answer, when it was sent: values read, or an error.
    pub(super) answer: Option<Result<Vec<Value>, ()>>,
}

#[derive(Clone, Copy, Debug)]
struct Connection {
    /// Answers come through.
    alive: bool,
    /// What was sent may still be carried out.
    open: bool,
}

pub(super) struct Server {
    kind: Kind,
    cells: Vec<Cell>,
    connections: Vec<Connection>,
    pub(super) requests: BTreeMap<usize, Request>,
    next: usize,
    pub(super) progress: u64,
}

impl Server {
    pub(super) fn new(kind: Kind, blocks: usize) -> Self {
        let cell = Cell {
            stored: vec![0],
            current: None,
            dirty: Vec::new(),
        };
        Self {
            kind,
            cells: vec![cell; blocks],
            connections: Vec::new(),
            requests: BTreeMap::new(),
            next: 0,
            progress: 0,
        }
    }

    pub(super) fn connect(&mut self) -> usize {
        self.connections.push(Connection {
            alive: true,
            open: true,
        });
        self.connections.len() - 1
    }

    pub(super) fn is_alive(&self, connection: usize) -> bool {
        self.connections[connection].alive
    }

    /// Whether anybody waits for an answer over this connection.
    pub(super) fn is_busy(&self, connection: usize) -> bool {
        self.requests.values().any(|r| r.connection == connection)
    }

    /// Whether nothing is on its way and nothing in the cache, so that a loss is as good as one
    /// later.
    pub(super) fn is_quiet(&self) -> bool {
        self.requests.is_empty() && self.cells.iter().all(|cell| cell.dirty.is_empty())
    }

    /// Sends a request; over a dead connection it goes nowhere.
    pub(super) fn send(&mut self, connection: usize, by: By, what: What) -> usize {
        self.next += 1;
        self.progress += 1;
        let request = Request {
            connection,
            by,
            what,
            answer: None,
        };
        self.requests.insert(self.next, request);
        self.next
    }

    /// Whether the request waits to be carried out, and may be. What was sent over a connection
    /// that was dead by then is not told apart: it may be carried out until that is closed.
    pub(super) fn may_serve(&self, id: usize) -> bool {
        let request = &self.requests[&id];
        request.answer.is_none() && self.connections[request.connection].open
    }

    /// Carries a request out and answers it, with success or not.
    pub(super) fn serve(&mut self, id: usize, success: bool, dice: &mut dyn Dice) {
        self.progress += 1;
        let Request {
            connection, what, ..
        } = self.requests[&id].clone();
        let answer = match what {
            What::Change {
                from,
                values,
                lasting,
            } => {
                for (block, value) in (from..).zip(&values) {
                    if success || dice.pick(2) == 1 {
                        self.cells[block].apply(*value, connection, lasting && success);
                    }
                }
                if lasting && !success {
                    self.drop_dirty(connection);
                }
                success.then(Vec::new).ok_or(())
            }
            What::Read { from, to } => match success {
                true => Ok((from..to).map(|b| self.cells[b].read(dice)).collect()),
                false => Err(()),
            },
            What::Flush if success => {
                self.flush(connection);
                Ok(Vec::new())
            }
            What::Flush => {
                self.drop_dirty(connection);
                Err(())
            }
        };
        let request = self.requests.get_mut(&id).expect("it is there");
        match self.connections[connection].alive {
            true => request.answer = Some(answer),
            // Carried out, and nobody will know.
            false => drop(self.requests.remove(&id)),
        }
    }

    fn is_of(&self, by: usize, connection: usize) -> bool {
        by == connection || self.kind != Kind::Separate
    }

    fn flush(&mut self, connection: usize) {
        for block in 0..self.cells.len() {
            let dirty = &self.cells[block].dirty;
            let last = dirty
                .iter()
                .rposition(|(_, by)| self.is_of(*by, connection));
            if let Some(last) = last {
                let cell = &mut self.cells[block];
                cell.stored = vec![cell.dirty[last].0];
                cell.dirty.drain(..=last);
            }
        }
    }

    /// A flush fails: what it should have made permanent may be, and no later flush tries again.
    fn drop_dirty(&mut self, connection: usize) {
        let separate = self.kind == Kind::Separate;
        for cell in &mut self.cells {
            cell.lose(|by| !separate || by == connection);
        }
    }

    /// The connection dies, the server does not. Answers that were sent may be lost, or not.
    pub(super) fn cut(&mut self, connection: usize, dice: &mut dyn Dice) {
        self.connections[connection].alive = false;
        self.lose_answers(connection, dice);
    }

    fn lose_answers(&mut self, connection: usize, dice: &mut dyn Dice) {
        self.requests.retain(|_, request| {
            request.connection != connection || request.answer.is_none() || dice.pick(2) == 0
        });
    }

    /// The server has closed the connection: nothing that came over it is carried out any more.
    pub(super) fn bury(&mut self, connection: usize) {
        let was = std::mem::replace(
            &mut self.connections[connection],
            Connection {
                alive: false,
                open: false,
            },
        );
        self.requests
            .retain(|_, request| request.connection != connection || request.answer.is_some());
        if was.open && self.kind == Kind::Separate {
            for cell in &mut self.cells {
                let was_last = cell.dirty.last().is_some_and(|(_, by)| *by == connection);
                cell.lose(|by| by == connection);
                if was_last {
                    cell.current = cell.dirty.last().map(|(value, _)| *value);
                }
            }
        }
    }

    /// The server dies and is there again: all connections are dead, and storage holds any of what
    /// was not permanent, block by block.
    pub(super) fn kill(&mut self, dice: &mut dyn Dice) {
        let on_the_way: Vec<Request> = self.requests.values().cloned().collect();
        for request in on_the_way {
            let may = request.answer.is_none() && self.connections[request.connection].open;
            if let (true, What::Change { from, values, .. }) = (may, request.what) {
                for (block, value) in (from..).zip(values) {
                    self.cells[block].may_hold(value);
                }
            }
        }
        for cell in &mut self.cells {
            cell.lose(|_| true);
            cell.current = None;
        }
        for connection in 0..self.connections.len() {
            if std::mem::replace(&mut self.connections[connection].alive, false) {
                self.lose_answers(connection, dice);
            }
            self.connections[connection].open = false;
        }
    }

    /// What permanent storage might hold of a block, if the server died now.
    pub(super) fn possible(&self, block: usize) -> impl Iterator<Item = Value> {
        let cell = &self.cells[block];
        let dirty = cell.dirty.iter().map(|(value, _)| *value);
        cell.stored.iter().copied().chain(dirty)
    }
}

impl Cell {
    fn apply(&mut self, value: Value, connection: usize, lasting: bool) {
        self.current = Some(value);
        match lasting {
            true => {
                self.dirty.clear();
                self.stored = vec![value];
            }
            false => self.dirty.push((value, connection)),
        }
    }

    fn read(&mut self, dice: &mut dyn Dice) -> Value {
        if let Some(value) = self.current {
            return value;
        }
        let value = self.stored[dice.pick(self.stored.len())];
        self.stored = vec![value];
        value
    }

    fn may_hold(&mut self, value: Value) {
        if !self.stored.contains(&value) {
            self.stored.push(value);
        }
    }

    /// What came over some connections is not dirty any more, and may be stored or not.
    fn lose(&mut self, of: impl Fn(usize) -> bool) {
        // What is read is not what is stored from now on.
        let dirty = std::mem::take(&mut self.dirty);
        for (value, by) in dirty {
            match of(by) {
                true => self.may_hold(value),
                false => self.dirty.push((value, by)),
            }
        }
    }
}
