//! The commands beside `up`.

mod apiserver;
mod down;
mod image;
mod kubelet;
mod status;
mod version;

pub use apiserver::run as apiserver;
pub use down::run as down;
pub use image::run as image;
pub use kubelet::run as kubelet;
pub use status::run as status;
pub use version::{KUBERNETES, run as version};
