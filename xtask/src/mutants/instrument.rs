//! Many mutants of a file in one text, of which a running program picks one: mutant schemata (Untch, Offutt, Harrold: "Mutation analysis using mutant
//! schemata", ISSTA 1993). Built once, where a build for each would take most of the time.
//!
//! `a + b` becomes a `match` of `(a, b)` and of the mutant that was chosen, so that operands are written, and evaluated, once. What the compiler
//! refuses is found again by the comments that are left in the text: each mutant with an expression of its own stands on a line that ends with its
//! number, and each place is bracketed.

use std::{cmp::Reverse, collections::HashMap, ops::Range};

use anyhow::{Context, Result};
use syn::{
    Arm, BinOp, Expr, ExprBinary, ExprUnary,
    spanned::Spanned,
    visit::{self, Visit},
};

/// The module that the mutated crate gets; `0` is the code as it is.
pub(super) const RUNTIME: &str = r#"
/// Which mutant runs.
pub(crate) mod weft_mutants {
    pub(crate) fn current() -> u32 {
        static CURRENT: std::sync::LazyLock<u32> = std::sync::LazyLock::new(|| {
            std::env::var("WEFT_MUTANT").ok().and_then(|number| number.parse().ok()).unwrap_or(0)
        });
        *CURRENT
    }
}
"#;
const CURRENT: &str = "crate::weft_mutants::current()";

/// What is done to the code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Genre {
    /// A function returns a fixed value.
    Value,
    /// One binary operator in the place of another.
    Binary,
    /// A unary operator left out.
    Unary,
    /// An arm of a match that has others, left out.
    Arm,
    /// The guard of an arm always true, or always false.
    Guard,
}

/// A mutant, with the bytes of the file that it is about: the operator, the arm, the guard, or the body of the function.
#[derive(Debug, Clone)]
pub(super) struct Mutant {
    pub number: u32,
    pub genre: Genre,
    pub replacement: String,
    pub bytes: Range<usize>,
}

/// A file with its mutants instrumented in.
#[derive(Debug, Default)]
pub(super) struct Instrumented {
    pub text: String,
    /// Mutants that no compiler takes: a condition with a pattern in it (`let`) that would be one side of "or".
    pub refused: Vec<u32>,
    /// Mutants that are not instrumented in: those not found in the file's syntax (in macros, for example), and operators between conditions that are no conditions.
    pub left: Vec<u32>,
}

/// A place that is written anew.
struct Place<'a> {
    bytes: Range<usize>,
    form: Form,
    mutants: Vec<&'a Mutant>,
}

enum Form {
    /// Both operands are taken, by value or by reference.
    Eager {
        left: Range<usize>,
        operator: Range<usize>,
        right: Range<usize>,
        compares: bool,
    },
    /// The second operand may not be looked at.
    Lazy {
        left: Range<usize>,
        right: Range<usize>,
        and: bool,
    },
    Assign {
        left: Range<usize>,
        operator: Range<usize>,
        right: Range<usize>,
    },
    Unary {
        operator: Range<usize>,
        operand: Range<usize>,
    },
    /// A guard that was there.
    Guard,
    /// No guard was there: one is put before the arrow.
    Arm,
    /// Before the first statement of a function.
    Body,
}

/// Weaves mutants into a file's text.
pub(super) fn instrument(source: &str, mutants: &[Mutant]) -> Result<Instrumented> {
    let file = syn::parse_file(source).context("not Rust")?;
    let mut finder = Finder {
        wanted: HashMap::new(),
        places: Vec::new(),
        refused: Vec::new(),
        left: Vec::new(),
    };
    for mutant in mutants {
        if mutant.genre == Genre::Value {
            finder.place(
                mutant.bytes.start..mutant.bytes.start,
                Form::Body,
                vec![mutant],
            );
        } else {
            let at = (mutant.genre, mutant.bytes.start);
            finder.wanted.entry(key(at)).or_default().push(mutant);
        }
    }
    finder.visit_file(&file);
    let Finder {
        wanted,
        mut places,
        refused,
        mut left,
    } = finder;
    // Whatever encloses another comes before it. What begins a function comes before its first expression, and a guard before the expression that it is.
    places.sort_by_key(|place| {
        let body = matches!(place.form, Form::Body);
        let guard = matches!(place.form, Form::Guard);
        (place.bytes.start, !body, Reverse(place.bytes.end), !guard)
    });
    let writer = Writer {
        source,
        places: &places,
    };
    let text = writer.render(0..source.len(), 0);
    left.extend(wanted.values().flatten().map(|mutant| mutant.number));
    Ok(Instrumented {
        text,
        refused,
        left,
    })
}

fn key((genre, start): (Genre, usize)) -> (u8, usize) {
    (genre as u8, start)
}

struct Finder<'a> {
    wanted: HashMap<(u8, usize), Vec<&'a Mutant>>,
    places: Vec<Place<'a>>,
    refused: Vec<u32>,
    left: Vec<u32>,
}

impl<'a> Finder<'a> {
    fn take(&mut self, genre: Genre, start: usize) -> Vec<&'a Mutant> {
        let found = self.wanted.remove(&key((genre, start)));
        found.unwrap_or_default()
    }

    fn place(&mut self, bytes: Range<usize>, form: Form, mutants: Vec<&'a Mutant>) {
        self.places.push(Place {
            bytes,
            form,
            mutants,
        });
    }
}

fn bytes(node: &impl Spanned) -> Range<usize> {
    node.span().byte_range()
}

/// Whether an operand of `&&` binds by a pattern.
fn binds(operand: &Expr) -> bool {
    match operand {
        Expr::Let(_) => true,
        Expr::Binary(inner) => {
            matches!(inner.op, BinOp::And(_)) && (binds(&inner.left) || binds(&inner.right))
        }
        _ => false,
    }
}

impl<'ast> Visit<'ast> for Finder<'_> {
    fn visit_expr_binary(&mut self, node: &'ast ExprBinary) {
        visit::visit_expr_binary(self, node);
        let operator = bytes(&node.op);
        let mut mutants = self.take(Genre::Binary, operator.start);
        let lazy = match node.op {
            BinOp::And(_) => Some("||"),
            BinOp::Or(_) => Some("&&"),
            _ => None,
        };
        if let Some(other) = lazy {
            // What else could stand there would look at both operands.
            mutants.retain(|mutant| {
                let instrumented = mutant.replacement == other;
                if !instrumented {
                    self.left.push(mutant.number);
                }
                instrumented
            });
        }
        if mutants.is_empty() {
            return;
        }
        if binds(&node.left) || binds(&node.right) {
            let numbers = mutants.iter().map(|mutant| mutant.number);
            return self.refused.extend(numbers);
        }
        let (left, right) = (bytes(&node.left), bytes(&node.right));
        use BinOp::*;
        let form = match node.op {
            And(_) | Or(_) => Form::Lazy {
                left,
                right,
                and: matches!(node.op, And(_)),
            },
            AddAssign(_) | SubAssign(_) | MulAssign(_) | DivAssign(_) | RemAssign(_)
            | BitXorAssign(_) | BitAndAssign(_) | BitOrAssign(_) | ShlAssign(_) | ShrAssign(_) => {
                Form::Assign {
                    left,
                    operator,
                    right,
                }
            }
            _ => Form::Eager {
                left,
                operator,
                right,
                compares: matches!(node.op, Eq(_) | Ne(_) | Lt(_) | Le(_) | Gt(_) | Ge(_)),
            },
        };
        self.place(bytes(node), form, mutants);
    }

    fn visit_expr_unary(&mut self, node: &'ast ExprUnary) {
        visit::visit_expr_unary(self, node);
        let operator = bytes(&node.op);
        let mutants = self.take(Genre::Unary, operator.start);
        if !mutants.is_empty() {
            let operand = bytes(&node.expr);
            self.place(bytes(node), Form::Unary { operator, operand }, mutants);
        }
    }

    fn visit_arm(&mut self, node: &'ast Arm) {
        visit::visit_arm(self, node);
        let mut mutants = self.take(Genre::Arm, bytes(node).start);
        match &node.guard {
            Some((_, guard)) => {
                let guard = bytes(guard);
                mutants.extend(self.take(Genre::Guard, guard.start));
                if !mutants.is_empty() {
                    self.place(guard, Form::Guard, mutants);
                }
            }
            None if mutants.is_empty() => {}
            None => {
                let arrow = bytes(&node.fat_arrow_token).start;
                self.place(arrow..arrow, Form::Arm, mutants);
            }
        }
    }
}

struct Writer<'a> {
    source: &'a str,
    places: &'a [Place<'a>],
}

impl Writer<'_> {
    /// Part of the file, with its places from the `from`th on written anew.
    fn render(&self, part: Range<usize>, from: usize) -> String {
        let mut text = String::new();
        let mut at = part.start;
        for (index, place) in self.places.iter().enumerate().skip(from) {
            // What lies in a place that is written already was written with it.
            if place.bytes.start < at || place.bytes.end > part.end {
                continue;
            }
            text.push_str(&self.source[at..place.bytes.start]);
            let numbers = place.mutants.iter().map(|mutant| mutant.number.to_string());
            let numbers = numbers.collect::<Vec<_>>().join(",");
            text.push_str(&format!("/*<{numbers}*/{}/*{numbers}>*/", self.anew(index)));
            at = place.bytes.end;
        }
        text.push_str(&self.source[at..part.end]);
        text
    }

    fn anew(&self, index: usize) -> String {
        let place = &self.places[index];
        let inner = |part: &Range<usize>| self.render(part.clone(), index + 1);
        let source = |part: &Range<usize>| &self.source[part.clone()];
        let number = |mutant: &Mutant| mutant.number;
        // One line for each mutant's expression, and the last for the code as it is.
        let arms = |each: &dyn Fn(&str) -> String, operator: &str| {
            let mut text = format!("match {CURRENT} {{\n");
            for mutant in &place.mutants {
                let (number, expression) = (mutant.number, each(&mutant.replacement));
                text.push_str(&format!("{number} => {expression}, //M{number}\n"));
            }
            text + &format!("_ => {} }}", each(operator))
        };
        match &place.form {
            Form::Eager {
                left,
                operator,
                right,
                compares,
            } => {
                let (by, of) = if *compares { ("&", "*") } else { ("", "") };
                let arms = arms(&|op| format!("{of}l_ {op} {of}r_"), source(operator));
                let (left, right) = (inner(left), inner(right));
                format!("(match ({by}({left}), {by}({right})) {{ (l_, r_) => {arms} }})")
            }
            Form::Lazy { left, right, and } => {
                let is = if *and { "==" } else { "!=" };
                let number = place.mutants.first().map_or(0, |mutant| mutant.number);
                let (left, right) = (inner(left), inner(right));
                format!(
                    "(match ({left}) {{ l_ => {{ let m_ = {CURRENT} {is} {number}; if l_ == m_ {{ m_ }} else {{ {right} }} }} }})"
                )
            }
            Form::Assign {
                left,
                operator,
                right,
            } => {
                let (left, right) = (inner(left), inner(right));
                let arms = arms(&|op| format!("{left} {op} r_"), source(operator));
                format!("(match ({right}) {{ r_ => {arms} }})")
            }
            Form::Unary { operator, operand } => {
                let arms = arms(&|op| format!("{op}x_"), source(operator));
                format!("(match ({}) {{ x_ => {arms} }})", inner(operand))
            }
            Form::Guard | Form::Arm => {
                let mut guard = match place.form {
                    Form::Guard => format!("({})", inner(&place.bytes)),
                    _ => "true".into(),
                };
                for mutant in &place.mutants {
                    let number = number(mutant);
                    guard = match mutant.replacement.as_str() {
                        "true" => format!("({CURRENT} == {number} || {guard})"),
                        _ => format!("({CURRENT} != {number} && {guard})"),
                    };
                }
                match place.form {
                    Form::Guard => guard,
                    _ => format!("if {guard} "),
                }
            }
            Form::Body => {
                let mutants = place.mutants.iter();
                let early = mutants.map(|mutant| {
                    let (number, value) = (number(mutant), &mutant.replacement);
                    format!("if {CURRENT} == {number} {{ return {value}; }} //M{number}\n")
                });
                format!("\n{}", early.collect::<String>())
            }
        }
    }
}

/// The mutants that an error at a byte of a instrumented text is about: the one whose line it is, or those of the innermost place around it.
pub(super) fn blamed(text: &str, byte: usize) -> Blame {
    let start = text[..byte].rfind('\n').map_or(0, |at| at + 1);
    let line = text[start..].lines().next().unwrap_or_default();
    if let Some((_, number)) = line.rsplit_once("//M") {
        return number.parse().map_or(Blame::Nobody, Blame::Mutant);
    }
    let mut open: Vec<&str> = Vec::new();
    let mut rest = &text[..byte];
    while let Some((_, comment)) = rest.split_once("/*") {
        let Some((inside, behind)) = comment.split_once("*/") else {
            break;
        };
        if let Some(number) = inside.strip_prefix('<') {
            open.push(number);
        } else if inside.strip_suffix('>') == open.last().copied() {
            open.pop();
        }
        rest = behind;
    }
    let Some(numbers) = open.last() else {
        return Blame::Nobody;
    };
    let numbers = numbers.split(',').map(str::parse);
    numbers
        .collect::<Result<_, _>>()
        .map_or(Blame::Nobody, Blame::Place)
}

/// Whom an error blames.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Blame {
    Nobody,
    Mutant(u32),
    Place(Vec<u32>),
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The mutant of what stands first in a text.
    fn mutant(source: &str, genre: Genre, what: &str, replacement: &str) -> Mutant {
        let start = source.find(what).expect("is there");
        Mutant {
            number: 7,
            genre,
            replacement: replacement.into(),
            bytes: start..start + what.len(),
        }
    }

    fn instrumented(source: &str, mutants: &[Mutant]) -> String {
        let instrumented = instrument(source, mutants).expect("Rust");
        assert_eq!(
            (instrumented.refused.len(), instrumented.left.len()),
            (0, 0)
        );
        syn::parse_file(&instrumented.text).expect("still Rust");
        instrumented.text
    }

    #[test]
    fn operands_are_written_once() {
        let source = "fn f() -> u8 { a(1) + b(2) }";
        let minus = mutant(source, Genre::Binary, "+", "-");
        assert_eq!(
            instrumented(source, &[minus]),
            "fn f() -> u8 { /*<7*/(match ((a(1)), (b(2))) { (l_, r_) => match crate::weft_mutants::current() {\n\
             7 => l_ - r_, //M7\n\
             _ => l_ + r_ } })/*7>*/ }"
        );
        let source = "fn f() -> bool { a == b }";
        let text = instrumented(source, &[mutant(source, Genre::Binary, "==", "!=")]);
        assert!(text.contains("(match (&(a), &(b)) {"), "{text}");
        assert!(text.contains("7 => *l_ != *r_, //M7"), "{text}");
    }

    #[test]
    fn the_second_operand_of_and_is_not_looked_at_in_vain() {
        let source = "fn f() -> bool { a && b }";
        let text = instrumented(source, &[mutant(source, Genre::Binary, "&&", "||")]);
        let expected =
            "let m_ = crate::weft_mutants::current() == 7; if l_ == m_ { m_ } else { b }";
        assert!(text.contains(expected), "{text}");
    }

    #[test]
    fn mutants_within_mutants() {
        let source = "fn f() { if !(a < b) { x += y - z; } }";
        let mut all = [
            mutant(source, Genre::Value, "if", "()"),
            mutant(source, Genre::Unary, "!", ""),
            mutant(source, Genre::Binary, "<", ">"),
            mutant(source, Genre::Binary, "+=", "-="),
            mutant(source, Genre::Binary, "-", "+"),
        ];
        for (number, mutant) in (1..).zip(&mut all) {
            mutant.number = number;
        }
        let text = instrumented(source, &all);
        for number in 1..=5 {
            assert!(text.contains(&format!("//M{number}\n")), "{text}");
        }
        let outer = text.find("/*<4*/").expect("assignment");
        assert!(text[outer..].contains("/*<5*/"), "{text}");
    }

    #[test]
    fn arms_and_guards() {
        let source = "fn f() { match x { 1 => a, 2 if g > 3 => b, _ => c } }";
        let mut all = [
            mutant(source, Genre::Arm, "1 => a", ""),
            mutant(source, Genre::Arm, "2 if g > 3 => b", ""),
            mutant(source, Genre::Guard, "g > 3", "true"),
            mutant(source, Genre::Guard, "g > 3", "false"),
            mutant(source, Genre::Binary, "> ", "<"),
        ];
        all[4].bytes = source.find("> 3").expect("is there")..source.find(" 3").expect("is there");
        for (number, mutant) in (1..).zip(&mut all) {
            mutant.number = number;
        }
        let text = instrumented(source, &all);
        let current = CURRENT;
        assert!(
            text.contains(&format!("if ({current} != 1 && true)")),
            "{text}"
        );
        let guard = format!("({current} != 4 && ({current} == 3 || ({current} != 2 && (/*<5*/");
        assert!(text.contains(&guard), "{text}");
    }

    #[test]
    fn a_pattern_in_a_condition_cannot_be_one_side_of_or() {
        let source = "fn f() { if let Some(x) = y && z {} }";
        let or = mutant(source, Genre::Binary, "&&", "||");
        let instrumented = instrument(source, &[or]).expect("Rust");
        assert_eq!(instrumented.refused, [7]);
        assert_eq!(instrumented.text, source);
    }

    #[test]
    fn errors_find_whom_they_are_about() {
        let source = "fn f() { g(a + b) }";
        let text = instrumented(source, &[mutant(source, Genre::Binary, "+", "-")]);
        let at = |what: &str| text.find(what).expect("is there");
        assert_eq!(blamed(&text, at("l_ - r_")), Blame::Mutant(7));
        assert_eq!(blamed(&text, at("l_ + r_")), Blame::Place(vec![7]));
        assert_eq!(blamed(&text, at("(a), (b)")), Blame::Place(vec![7]));
        assert_eq!(blamed(&text, at("g(")), Blame::Nobody);
    }
}
