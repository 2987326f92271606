//! What pgbox prints: tables, plans, lessons. Pure: text in, text out.

pub mod plan;
pub mod table;
