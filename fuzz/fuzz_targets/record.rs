#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_targets::record::as_a_parser_would(data));
