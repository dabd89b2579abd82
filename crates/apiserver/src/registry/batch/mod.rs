//! Work that comes to an end.

pub mod cron_job;
mod indexes;
pub mod job;
mod job_spec;
mod job_status;
mod job_template;
mod policies;
mod schedule;
