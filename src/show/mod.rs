//! What pgbox prints: tables, plans, lessons. Pure: text in, text out.

pub mod changes;
pub mod error;
pub mod lab;
pub mod plan;
pub mod script;
pub mod table;
