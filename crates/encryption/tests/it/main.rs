//! Encryption over a real store, and with a plugin behind a real socket.

mod keys;
mod kms;
mod plugin;
mod support;
