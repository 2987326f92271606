//! image

pub mod build;
mod build_layout;
mod build_recipe;
pub mod pack;
