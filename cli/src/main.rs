//! everlog
fn main(){}
