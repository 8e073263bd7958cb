//! Proofs of the core.
