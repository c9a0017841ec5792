#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_targets::split::as_a_parser_would(data));
