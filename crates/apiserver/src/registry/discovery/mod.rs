//! Where a Service's traffic may go.

pub mod endpoint_slice;
