//! The scenarios, each with its definition.

pub mod context;
pub mod growth;
pub mod s1;
pub mod s2;
pub mod s3;
pub mod s4;
pub mod s5;
pub mod s6;
pub mod s7;
pub mod s8;
pub mod s9;
pub mod split;
