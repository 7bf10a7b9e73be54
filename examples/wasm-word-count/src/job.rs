//! Between functions over single records and groups, and the packed batches of the interface (`program.wit`).

wit_bindgen::generate!({ world: "job", path: "../../src/wasm/program.wit" });

pub use exports::roundtable::job::program::{Batch, Groups, Guest, Shape};

/// What a program does. Each attempt of each task has one of its own. An error, like a panic, fails the task, and
/// its text is shown to whoever runs the job.
pub trait Job: Sized {
    /// Whether there is a [`combine`](Self::combine).
    const COMBINES: bool = false;
    /// Whether there is a [`reduce`](Self::reduce). Without it pairs become records as they are: key, tab, value.
    const REDUCES: bool = false;

    /// From the arguments that the job has.
    fn start(arguments: Vec<Vec<u8>>) -> Result<Self, String>;

    /// Makes pairs of a record.
    fn map(&mut self, record: &[u8], out: &mut Pairs) -> Result<(), String>;

    /// Puts together some of the values of a key, before they go to another node. The key must stay what it is.
    fn combine(&mut self, _key: &[u8], _values: Values<'_>, _out: &mut Pairs) -> Result<(), String> {
        Err("there is no combine".to_owned())
    }

    /// Makes records of a key and all its values.
    fn reduce(&mut self, _key: &[u8], _values: Values<'_>, _out: &mut Records) -> Result<(), String> {
        Err("there is no reduce".to_owned())
    }
}

/// The pairs that a program hands back.
#[derive(Default)]
pub struct Pairs(Packed);

impl Pairs {
    pub fn push(&mut self, key: &[u8], value: &[u8]) {
        self.0.push(key);
        self.0.push(value);
    }
}

/// The records that a program hands back.
#[derive(Default)]
pub struct Records(Packed);

impl Records {
    pub fn push(&mut self, record: &[u8]) {
        self.0.push(record);
    }
}

#[derive(Default)]
struct Packed {
    bytes: Vec<u8>,
    ends: Vec<u32>,
}

impl Packed {
    fn push(&mut self, string: &[u8]) {
        self.bytes.extend_from_slice(string);
        self.ends.push(self.bytes.len() as u32);
    }

    fn batch(self) -> Batch {
        Batch { bytes: self.bytes, ends: self.ends }
    }
}

/// The strings of a batch, one after the other.
struct Strings<'a> {
    bytes: &'a [u8],
    ends: std::slice::Iter<'a, u32>,
    at: usize,
}

impl<'a> Strings<'a> {
    fn new(bytes: &'a [u8], ends: &'a [u32]) -> Self {
        Self { bytes, ends: ends.iter(), at: 0 }
    }

    /// The next `count` of them.
    fn values(&mut self, count: u32) -> Values<'a> {
        let (ends, rest) = self.ends.as_slice().split_at(count as usize);
        let values = Values(Strings { bytes: self.bytes, ends: ends.iter(), at: self.at });
        self.ends = rest.iter();
        self.at = ends.last().map_or(self.at, |end| *end as usize);
        values
    }
}

impl<'a> Iterator for Strings<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let end = *self.ends.next()? as usize;
        let string = &self.bytes[self.at..end];
        self.at = end;
        Some(string)
    }
}

/// The values of a key.
pub struct Values<'a>(Strings<'a>);

impl<'a> Iterator for Values<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        self.0.next()
    }
}

/// `map` for a batch.
pub fn map(job: &mut impl Job, records: &Batch) -> Result<Batch, String> {
    let mut out = Pairs::default();
    for record in Strings::new(&records.bytes, &records.ends) {
        job.map(record, &mut out)?;
    }
    Ok(out.0.batch())
}

/// `combine` for some groups.
pub fn combine(job: &mut impl Job, groups: &Groups) -> Result<Batch, String> {
    let mut out = Pairs::default();
    each(groups, |key, values| job.combine(key, values, &mut out))?;
    Ok(out.0.batch())
}

/// `reduce` for some groups.
pub fn reduce(job: &mut impl Job, groups: &Groups) -> Result<Batch, String> {
    let mut out = Records::default();
    each(groups, |key, values| job.reduce(key, values, &mut out))?;
    Ok(out.0.batch())
}

fn each(
    groups: &Groups,
    mut what: impl FnMut(&[u8], Values<'_>) -> Result<(), String>,
) -> Result<(), String> {
    let mut strings = Strings::new(&groups.bytes, &groups.ends);
    for count in &groups.counts {
        let key = strings.next().unwrap_or_default();
        what(key, strings.values(*count))?;
    }
    Ok(())
}

/// Makes a [`Job`] the program that this component is.
#[macro_export]
macro_rules! export_job {
    ($job:ty) => {
        std::thread_local! {
            static JOB: std::cell::RefCell<Option<$job>> = const { std::cell::RefCell::new(None) };
        }

        fn with_job<T>(what: impl FnOnce(&mut $job) -> Result<T, String>) -> Result<T, String> {
            JOB.with_borrow_mut(|job| what(job.as_mut().ok_or("it was not started")?))
        }

        struct Exported;

        impl $crate::job::Guest for Exported {
            fn describe() -> $crate::job::Shape {
                $crate::job::Shape {
                    combine: <$job as $crate::job::Job>::COMBINES,
                    reduce: <$job as $crate::job::Job>::REDUCES,
                }
            }

            fn start(arguments: Vec<Vec<u8>>) -> Result<(), String> {
                let job = <$job as $crate::job::Job>::start(arguments)?;
                JOB.set(Some(job));
                Ok(())
            }

            fn map(records: $crate::job::Batch) -> Result<$crate::job::Batch, String> {
                with_job(|job| $crate::job::map(job, &records))
            }

            fn combine(groups: $crate::job::Groups) -> Result<$crate::job::Batch, String> {
                with_job(|job| $crate::job::combine(job, &groups))
            }

            fn reduce(groups: $crate::job::Groups) -> Result<$crate::job::Batch, String> {
                with_job(|job| $crate::job::reduce(job, &groups))
            }
        }

        $crate::job::export!(Exported with_types_in $crate::job);
    };
}
