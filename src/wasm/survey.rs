//! What compiling a component would take, told before it is compiled: nothing can stop a compiler that has begun.
//!
//! Most of the work of a compiler grows with the bytes of a function. Some of it grows faster: with the square of the
//! number of loops, or of branches; with blocks times variables; with the targets of jump tables; and with how deep
//! loops are nested. Code that was made for that takes minutes and gigabytes for some ten kilobytes. What compilers
//! make of programs that people write is far from it. The weights below were fitted to measurements of such code.

use wasmparser::{BlockType, FunctionBody, Operator, Parser, Payload};

use super::LoadError;

/// Most that a function may weigh: a unit is about a microsecond of a compiler that was built without optimisation,
/// and the memory that it needs for a time is at most some hundred bytes.
const MAX_FUNCTION_WEIGHT: u64 = 8_000_000;
/// Most that all functions of a component may weigh together.
const MAX_WEIGHT: u64 = 64_000_000;
/// Deepest that loops may be nested.
const MAX_LOOPS: usize = 50;
/// Most modules and components within a component.
const MAX_PARTS: usize = 100;

/// What a function weighs, however short it is: also one between a module and the host.
const FUNCTION: u64 = 1000;
/// Each byte of it.
const BYTE: u64 = 2;
/// Each block and branch.
const BLOCK: u64 = 50;
/// Each target of its jump tables.
const TARGET: u64 = 400;

/// Whether a component may be compiled.
///
/// # Errors
/// If it cannot be read, or would take too much.
pub(super) fn survey(bytes: &[u8]) -> Result<(), LoadError> {
    let (mut weight, mut parts) = (0u64, 0);
    for payload in Parser::new(0).parse_all(bytes) {
        match payload.map_err(|error| not_read(&error))? {
            Payload::CodeSectionEntry(body) => weight += weigh(&body)?,
            Payload::ComponentCanonicalSection(functions) => {
                weight += FUNCTION * u64::from(functions.count());
            }
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => parts += 1,
            _ => {}
        }
        if weight > MAX_WEIGHT {
            return Err(LoadError::TooComplex("it"));
        }
        if parts > MAX_PARTS {
            return Err(LoadError::TooComplex("the number of its modules"));
        }
    }
    Ok(())
}

fn weigh(body: &FunctionBody<'_>) -> Result<u64, LoadError> {
    let mut locals = 0u64;
    for group in body.get_locals_reader().map_err(|error| not_read(&error))? {
        locals += u64::from(group.map_err(|error| not_read(&error))?.0);
    }
    let (mut blocks, mut branches, mut all_loops, mut targets) = (0u64, 0u64, 0u64, 0u64);
    // Of each block that is open, whether it is a loop.
    let (mut open, mut loops) = (Vec::new(), 0);
    for operator in body.get_operators_reader().map_err(|error| not_read(&error))? {
        let operator = operator.map_err(|error| not_read(&error))?;
        match &operator {
            Operator::Block { blockty } | Operator::If { blockty } | Operator::Loop { blockty } => {
                // What a block takes and gives are variables of it; types of functions say so.
                locals += u64::from(matches!(blockty, BlockType::FuncType(_)));
                let is_loop = matches!(operator, Operator::Loop { .. });
                loops += usize::from(is_loop);
                all_loops += u64::from(is_loop);
                open.push(is_loop);
                blocks += 1;
            }
            Operator::End => loops -= usize::from(open.pop().unwrap_or(false)),
            Operator::BrTable { targets: table } => targets += u64::from(table.len()),
            Operator::Br { .. } | Operator::BrIf { .. } | Operator::Else => branches += 1,
            _ => {}
        }
        if loops > MAX_LOOPS {
            return Err(LoadError::TooComplex("the depth of its loops"));
        }
    }
    let bytes = body.range().len() as u64;
    let places = blocks + branches;
    let weight = FUNCTION
        + BYTE * bytes
        + BLOCK * places
        + all_loops * all_loops / 4
        + places * places / 40
        + locals * places
        + TARGET * targets;
    if weight > MAX_FUNCTION_WEIGHT {
        return Err(LoadError::TooComplex("one of its functions"));
    }
    Ok(weight)
}

fn not_read(error: &wasmparser::BinaryReaderError) -> LoadError {
    LoadError::NotComponent(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_function(body: &str) -> Result<(), LoadError> {
        let text = format!("(component (core module (func (param i32) (local i32) {body})))");
        survey(&wat::parse_str(text).unwrap())
    }

    #[test]
    fn ordinary_code_may_be_compiled() {
        survey(include_bytes!("../../tests/data/word_count.wasm")).unwrap();
        // An interpreter: some hundred cases, thousands of branches.
        let cases = "(block ".repeat(500);
        let table = (0..500).map(|case| case.to_string()).collect::<Vec<_>>().join(" ");
        let body = format!("{cases} (br_table {table} (local.get 0)) {}", ")".repeat(500));
        of_function(&body).unwrap();
        of_function(&"(if (local.get 0) (then (local.set 1 (local.get 0))))".repeat(8000)).unwrap();
    }

    #[test]
    fn code_that_was_made_to_be_compiled_for_ever_is_not_compiled() {
        let of_one_function = LoadError::TooComplex("one of its functions");
        let nested = |loops| of_function(&format!("{}{}", "(loop ".repeat(loops), ")".repeat(loops)));
        assert_eq!(nested(MAX_LOOPS), Ok(()));
        assert_eq!(nested(MAX_LOOPS + 1), Err(LoadError::TooComplex("the depth of its loops")));
        assert_eq!(of_function(&"(loop)".repeat(10_000)).unwrap_err(), of_one_function);
        let ifs = "(if (local.get 0) (then ".repeat(20_000) + &"))".repeat(20_000);
        assert_eq!(of_function(&ifs).unwrap_err(), of_one_function);
        let many = "(local i64 ".to_owned() + &"i64 ".repeat(4000) + ")" + &"(block)".repeat(4000);
        assert_eq!(of_function(&many).unwrap_err(), of_one_function);
        let table = format!("(block (br_table {} (local.get 0)))", "0 ".repeat(30_000));
        assert_eq!(of_function(&table).unwrap_err(), of_one_function);
        let functions = "(func)".repeat(170_000);
        let error = survey(&wat::parse_str(format!("(component (core module {functions}))")).unwrap());
        assert_eq!(error, Err(LoadError::TooComplex("it")));
        let modules = "(core module)".repeat(MAX_PARTS + 1);
        let error = survey(&wat::parse_str(format!("(component {modules})")).unwrap());
        assert_eq!(error, Err(LoadError::TooComplex("the number of its modules")));
    }
}
