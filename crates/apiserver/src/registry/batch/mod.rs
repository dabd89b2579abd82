//! Work that comes to an end.

pub mod cron_job;
pub mod job;
mod schedule;
