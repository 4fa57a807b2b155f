//! What entries do to the state, by itself.
