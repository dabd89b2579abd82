//! See the architecture text.
