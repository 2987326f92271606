//! image

pub mod user;
