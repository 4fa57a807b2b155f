//! What a board tells to whom.
