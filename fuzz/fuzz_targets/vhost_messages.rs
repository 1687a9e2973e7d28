#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| weft_dataplane::port::vhost_fuzzing::messages(input));
