//! The API server as its clients meet it: a whole server in this process, its store in a directory of its own.

mod admission;
mod aggregation;
mod asking;
mod audit;
mod authentication;
mod bodies;
mod conversion;
mod custom;
mod debugging;
mod encryption;
mod fairness;
mod faults;
mod fuzzing;
mod hook;
mod limits;
mod observed;
mod others;
mod ownership;
mod pod_certificates;
mod reads;
mod recorded;
mod services;
mod support;
mod traces;
mod typechecking;
mod webhooks;
