//! Who serves which group.

pub mod api_service;
