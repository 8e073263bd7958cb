//! The only state of the whole process: what the user asked for.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::guard::Failure;
use crate::config::{Config, Params};

/// Before and after `config_complete`.
#[derive(Debug)]
enum State {
    Collecting(Option<Params>),
    Frozen(Arc<Config>),
}

static STATE: Mutex<State> = Mutex::new(State::Collecting(None));

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes one parameter.
pub fn set(key: &str, value: &[u8]) -> Result<(), Failure> {
    match &mut *state() {
        State::Collecting(params) => Ok(params.get_or_insert_default().set(key, value)?),
        State::Frozen(_) => Err(Failure::misuse("parameter after the last parameter")),
    }
}

/// Checks the parameters together and freezes them.
pub fn freeze() -> Result<(), Failure> {
    let mut state = state();
    if let State::Collecting(params) = &mut *state {
        let config = params.take().unwrap_or_default().complete()?;
        *state = State::Frozen(Arc::new(config));
    }
    Ok(())
}

/// The frozen configuration.
pub fn config() -> Result<Arc<Config>, Failure> {
    match &*state() {
        State::Frozen(config) => Ok(config.clone()),
        State::Collecting(_) => Err(Failure::misuse("used before it was configured")),
    }
}

/// Forgets everything.
pub fn clear() {
    *state() = State::Collecting(None);
}
