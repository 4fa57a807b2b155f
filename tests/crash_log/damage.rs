//! Damage of a log whose entries others hold, too. Whatever is damaged: an entry is the
//! original, or known to be damaged under its right name, or the log says that it forgot.

use std::collections::BTreeMap;

use super::*;

pub(super) fn reopen(disk: &SimDisk) -> Result<(Log, Recovered), StoreError> {
    let options = LogOptions { dir: dir(), segment_bytes: SEGMENT, repairable: true };
    Log::open(Arc::new(disk.clone()), options, NodeId(1), || IDENTITY)
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Clean,
    Marked,
    /// Nothing proves the last batch.
    Open,
}

/// Several segments, small and large entries, and a suffix that was replaced.
fn original(end: End) -> (SimDisk, State) {
    let mut steps = vec![
        append(1, 1, &[10, 20, 30, 40, 600, 5]),
        append(7, 1, &[3000, 100, 100]),
        append(10, 2, &[50, 60, 70, 80]),
        Step::Mark,
        append(12, 3, &[500, 20, 20, 900]),
        append(16, 3, &[9000]),
        append(17, 3, &[30, 30, 30]),
        append(20, 3, &[6000, 10]),
        Step::Vote { term: 4, vote: 2, wait: true },
        append(22, 4, &[40, 40, 40]),
        append(25, 4, &[7000]),
        append(26, 4, &[30, 1, 2, 3, 4, 5, 6, 700]),
    ];
    if end == End::Marked {
        steps.push(Step::Mark);
    }
    let disk = SimDisk::new(11);
    let mut run = Run::new(Arc::new(disk.clone()), dir(), Driver::Right);
    run.all(&steps).unwrap();
    if end == End::Clean {
        run.log().mark_clean().unwrap();
    }
    (disk.image(Survival::None), run.acked)
}

/// What a log says of itself.
#[derive(Clone, Debug, PartialEq)]
struct View {
    last: LogId,
    terms: BTreeMap<u64, Term>,
    chains: BTreeMap<u64, u64>,
    entries: BTreeMap<u64, Held>,
    damaged: Vec<u64>,
    runs: Vec<LogId>,
    amnesia: Option<Term>,
    cut: bool,
}

fn view(log: &Log, found: &Recovered) -> View {
    let reader = log.reader();
    let all = found.base.index.0 + 1..=found.last.index.0;
    let held = |index: u64| {
        let entry = reader.entry(Index(index))?;
        let payload = entry.payload.to_vec();
        Some((index, Held { id: entry.id, kind: entry.kind, chain: entry.chain, payload }))
    };
    assert_eq!(found.damaged.first().copied(), log.damaged(), "two ways to ask");
    let damaged = found.damaged.iter().flat_map(|(first, last)| first.0..=last.0).collect();
    View {
        last: found.last,
        terms: all.clone().filter_map(|i| Some((i, reader.term_at(Index(i))?))).collect(),
        chains: all.clone().filter_map(|i| Some((i, log.chain_at(Index(i))?))).collect(),
        entries: all.filter_map(held).collect(),
        damaged,
        runs: found.runs.clone(),
        amnesia: found.amnesia,
        cut: found.cut.is_some(),
    }
}

/// `cut`: entries of the last batch, which may have been torn.
fn honest(view: &View, want: &History, cut: u64) -> Result<(), String> {
    let last = want.last().0.index.0;
    if view.amnesia.is_none() && view.last.index.0 != last {
        let torn = view.cut && view.last.index.0 == last - cut && cut > 0;
        if !torn {
            return Err(format!("ends at {:?} in silence", view.last));
        }
    }
    if view.last.index.0 > last {
        return Err(format!("{:?} is beyond the history", view.last));
    }
    let mut runs: Vec<LogId> = Vec::new();
    for held in want.entries.iter().take(usize::try_from(view.last.index.0).unwrap()) {
        let index = held.id.index.0;
        if runs.last().is_none_or(|run| run.term != held.id.term) {
            runs.push(held.id);
        }
        if view.terms.get(&index) != Some(&held.id.term) {
            return Err(format!("{:?} has term {:?}", held.id, view.terms.get(&index)));
        }
        match (view.entries.get(&index), view.damaged.contains(&index)) {
            (Some(entry), false) if entry == held => {}
            (None, true) if view.chains.get(&index).is_none_or(|chain| *chain == held.chain) => {}
            (entry, damaged) => {
                return Err(format!("entry {index}, damaged {damaged}, is {entry:?}"));
            }
        }
    }
    if runs != view.runs {
        return Err(format!("runs {:?}, not {runs:?}", view.runs));
    }
    Ok(())
}

fn encoded(want: &[Held], mut before: u64, wrong: bool) -> Vec<u8> {
    let mut frames = Vec::new();
    for held in want {
        let mut payload = held.payload.clone();
        if wrong {
            payload.push(7);
        }
        let chain = frame::encode(held.id, held.kind, 5, before, &payload, &mut frames);
        before = if wrong { chain } else { held.chain };
    }
    frames
}

/// Frames `first ..= last` of the original, or of a history with the same names.
fn frames_of(want: &History, first: u64, last: u64, wrong: bool) -> Vec<u8> {
    let (from, to) = (usize::try_from(first - 1).unwrap(), usize::try_from(last).unwrap());
    let (_, before) = want.at(first - 1).unwrap();
    encoded(&want.entries[from..to], before, wrong)
}

/// Offers other histories, pieces from anywhere, then everything: the log is whole again.
fn mend(log: &mut Log, want: &History, rng: &mut Rng) -> Result<u64, String> {
    let last = log.written().index.0;
    let text = |error: StoreError| error.to_string();
    let mut repaired = 0;
    while let Some((first, to)) = log.damaged() {
        let wrong = frames_of(want, first.0, to.0, true);
        if log.repair(&wrong).map_err(text)? > 0 {
            return Err(format!("another history was believed for {first}..={to}"));
        }
        let from = first.0 + rng.below(to.0 - first.0 + 1);
        let some = from + rng.below(last - from + 1).min(2);
        let mut pieces = frames_of(want, from, from, true);
        pieces.extend(frames_of(want, from, some, false));
        pieces.extend([1, 2, 3, 4, 5, 6, 7, 8]);
        repaired += log.repair(&pieces).map_err(text)?;
        if rng.below(3) == 0 {
            let mut all = frames_of(want, 1, last, true);
            all.extend(frames_of(want, 1, last, false));
            repaired += log.repair(&all).map_err(text)?;
            if let Some(left) = log.damaged() {
                return Err(format!("{left:?} is left after all was offered"));
            }
        }
    }
    Ok(repaired)
}

#[derive(Debug, Default)]
struct Tally {
    whole: u64,
    repaired: u64,
    forgot: u64,
}

/// Opens a damaged disk, judges, repairs, and demands that this lasts.
fn survive(disk: &SimDisk, want: &State, cut: u64, rng: &mut Rng) -> Result<Tally, String> {
    let mut tally = Tally::default();
    let (mut log, found) = reopen(disk).map_err(|error| error.to_string())?;
    let seen = view(&log, &found);
    honest(&seen, &want.log, cut)?;
    let first_cut = seen.cut;
    if found.amnesia.is_some() {
        if found.hard_state.term <= want.hard.term || found.hard_state.vote.is_some() {
            return Err(format!("it forgot and may still vote: {:?}", found.hard_state));
        }
        tally.forgot = 1;
    } else if found.hard_state != want.hard {
        return Err(format!("hard state {:?}", found.hard_state));
    }
    drop(log);
    // The same is found again, also by one that lost power.
    let (again, twice) = reopen(&disk.image(Survival::None)).map_err(|error| error.to_string())?;
    let (first, second) = (View { cut: false, ..seen }, view(&again, &twice));
    if (View { cut: false, ..second.clone() }) != first {
        return Err(format!("the second time {second:?}, not {first:?}"));
    }
    drop(again);
    (log, _) = reopen(disk).map_err(|error| error.to_string())?;
    let repaired = mend(&mut log, &want.log, rng)?;
    tally.repaired = u64::from(repaired > 0);
    tally.whole = u64::from(repaired + tally.forgot == 0);
    drop(log);
    let image = disk.image(Survival::None);
    let (mut log, found) = reopen(&image).map_err(|error| format!("after the repair: {error}"))?;
    let after = View { cut: first_cut, ..view(&log, &found) };
    if !after.damaged.is_empty() || after.last != first.last {
        return Err(format!("the repair of {:?} did not last: {after:?}", first.damaged));
    }
    honest(&after, &want.log, cut)?;
    goes_on(&mut log, &image).map(|()| tally).map_err(|why| format!("behind the repair: {why}"))
}

/// One more entry behind everything.
fn goes_on(log: &mut Log, disk: &SimDisk) -> Result<(), String> {
    let text = |error: StoreError| error.to_string();
    let (id, term) = (log.written(), log.hard_state().term);
    let id = LogId { term, index: id.index.next() };
    log.stage_own(id, EntryKind::Command, &[9; 300], 5);
    let job = log.write(IoToken(1)).map_err(text)?.unwrap();
    let synced = job.run().map_err(text)?;
    log.synced(synced);
    let (_, found) = reopen(&disk.image(Survival::None)).map_err(text)?;
    (found.last == id && found.damaged.is_empty())
        .then_some(())
        .ok_or_else(|| format!("{:?}, damaged {:?}", found.last, found.damaged))
}

fn segments(disk: &SimDisk) -> Vec<PathBuf> {
    let names = disk.list(&dir()).unwrap().into_iter();
    names.filter(|name| name.ends_with(".seg")).map(|name| dir().join(name)).collect()
}

/// A bit, zeros or noise.
fn spoil(disk: &SimDisk, file: &Path, at: usize, len: usize, how: u64, rng: &mut Rng) {
    let bytes = disk.contents(file);
    let end = (at + len).min(bytes.len());
    let bad: Vec<u8> = match how {
        0 => {
            let mut bad = bytes[at..end].to_vec();
            let spot = usize::try_from(rng.below(bad.len() as u64)).unwrap();
            bad[spot] ^= 1 << rng.below(8);
            bad
        }
        1 => vec![0; end - at],
        _ => (at..end).map(|_| u8::try_from(rng.below(256)).unwrap()).collect(),
    };
    disk.damage(file, at as u64, &bad);
}

/// The end of what was written in a file.
fn used(disk: &SimDisk, file: &Path) -> usize {
    disk.contents(file).iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1)
}

#[test]
fn whatever_is_damaged_is_named_or_forgotten_and_comes_back() {
    let mut total = Tally::default();
    let mut rng = Rng::new(3);
    let mut wrong = Vec::new();
    let mut judge = |disk: &SimDisk, want: &State, cut, what: String, rng: &mut Rng| match survive(
        disk, want, cut, rng,
    ) {
        Ok(tally) => {
            total.whole += tally.whole;
            total.repaired += tally.repaired;
            total.forgot += tally.forgot;
        }
        Err(why) => wrong.push(format!("{what}: {why}")),
    };
    for end in [End::Clean, End::Marked, End::Open] {
        let (disk, want) = original(end);
        let cut = if end == End::Open { 8 } else { 0 };
        let files = segments(&disk);
        assert!(files.len() >= 3, "{files:?}");
        for file in &files {
            let used = used(&disk, file);
            for at in (0..used).step_by(512) {
                for how in 0..3 {
                    let image = disk.image(Survival::None);
                    spoil(&image, file, at, 512, how, &mut rng);
                    judge(&image, &want, cut, format!("{end:?}, sector {at}, {how}"), &mut rng);
                }
            }
            let step = if end == End::Open { 97 } else { 13 };
            for at in (0..used).step_by(step) {
                let image = disk.image(Survival::None);
                spoil(&image, file, at, 1, 0, &mut rng);
                judge(&image, &want, cut, format!("{end:?}, byte {at} of {file:?}"), &mut rng);
            }
        }
        for number in 0..700 {
            let image = disk.image(Survival::None);
            for _ in 0..2 {
                let file = &files[usize::try_from(rng.below(files.len() as u64)).unwrap()];
                let at = usize::try_from(rng.below(used(&disk, file) as u64)).unwrap();
                let sizes = if end == End::Clean { 5 } else { 4 };
                let len = [1, 8, 100, 512, 4096][usize::try_from(rng.below(sizes)).unwrap()];
                let how = rng.below(3);
                spoil(&image, file, at, len, how, &mut rng);
            }
            // Two spots can take the last batch and what proves it.
            let cut = if end == End::Clean { 0 } else { 8 };
            if end != End::Open {
                judge(&image, &want, cut, format!("{end:?}, pair {number}"), &mut rng);
            }
        }
    }
    println!("{total:?}");
    assert!(wrong.is_empty(), "{} wrong: {:#?}", wrong.len(), &wrong[..wrong.len().min(5)]);
    assert!(total.whole > 100 && total.repaired > 1000 && total.forgot > 100, "{total:?}");
}

/// Where the frame of an entry is, in which file.
fn find(disk: &SimDisk, held: &Held, before: u64) -> (PathBuf, usize) {
    let mut frame = Vec::new();
    frame::encode(held.id, held.kind, 5, before, &held.payload, &mut frame);
    let place = segments(disk).into_iter().find_map(|file| {
        let bytes = disk.contents(&file);
        let at = bytes.windows(frame.len()).position(|window| window == frame)?;
        Some((file, at))
    });
    place.unwrap()
}

/// Entries to damage: `true` the payload, `false` the header.
type Hurt<'a> = &'a [(u64, bool)];

fn hurt(disk: &SimDisk, want: &History, entries: Hurt<'_>) {
    for (index, payload) in entries {
        let held = want.get(*index).unwrap();
        let (file, at) = find(disk, held, want.at(index - 1).unwrap().1);
        let at = if *payload { at + 50 } else { at + 3 };
        let old = disk.contents(&file)[at];
        disk.damage(&file, at as u64, &[old ^ 0x55]);
    }
}

#[test]
fn damaged_entries_keep_their_names() {
    let (disk, want) = original(End::Marked);
    let cases: [(Hurt<'_>, &[(u64, u64)]); 4] = [
        (&[(5, true)], &[(5, 5)]),
        (&[(2, false), (4, false), (8, true)], &[(2, 4), (8, 8)]),
        (&[(12, true), (16, true), (19, true)], &[(12, 12), (16, 16), (19, 19)]),
        (&[(27, false), (33, true)], &[(27, 27), (33, 33)]),
    ];
    for (entries, runs) in cases {
        let image = disk.image(Survival::None);
        hurt(&image, &want.log, entries);
        let (mut log, found) = reopen(&image).unwrap();
        let found_runs: Vec<_> = found.damaged.iter().map(|(a, b)| (a.0, b.0)).collect();
        assert_eq!((found_runs.as_slice(), found.amnesia), (runs, None));
        assert_eq!(log.damaged_from(Index(entries[0].0 + 1)).is_some(), entries.len() > 1);
        mend(&mut log, &want.log, &mut Rng::new(1)).unwrap();
        let error = open(Arc::new(disk.image(Survival::None)), &dir()).map(|_| ());
        assert!(error.is_ok(), "{error:?}");
    }
    hurt(&disk, &want.log, &[(5, true)]);
    let error = open(Arc::new(disk), &dir()).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("of entries 1..=6, 5 cannot be read"), "{error}");
}

#[test]
fn a_leader_supersedes_damaged_entries() {
    let (disk, want) = original(End::Marked);
    // The header of the entry before what is replaced is lost, in this segment or the last.
    for (hurt_at, first) in [(28, 29), (28, 28), (20, 21), (4, 5), (4, 3)] {
        let image = disk.image(Survival::None);
        hurt(&image, &want.log, &[(hurt_at, false)]);
        let (mut log, found) = reopen(&image).unwrap();
        assert_eq!(found.amnesia, None, "{hurt_at}");
        log.stage_hard_state(HardState { term: Term(9), vote: None });
        let id = LogId { term: Term(9), index: Index(first) };
        let (_, before) = want.log.at(first - 1).unwrap();
        let mut frames = Vec::new();
        frame::encode(id, EntryKind::Command, 5, before, &[4; 9000], &mut frames);
        log.stage_frames(id.index, &frames).unwrap();
        let job = log.write(IoToken(1)).unwrap().unwrap();
        log.synced(job.run().unwrap());
        let left = (hurt_at < first).then_some((Index(hurt_at), Index(hurt_at)));
        assert_eq!(log.damaged(), left);
        drop(log);
        let (mut log, found) = reopen(&image.image(Survival::None)).unwrap();
        assert_eq!((found.last, log.damaged(), found.amnesia), (id, left, None));
        mend(&mut log, &want.log, &mut Rng::new(2)).unwrap();
        assert_eq!(log.chain_at(Index(hurt_at)).is_some(), hurt_at <= first);
    }
}

#[test]
fn a_power_loss_during_a_repair_loses_nothing() {
    let (disk, want) = original(End::Marked);
    let mut judged = 0;
    for entries in [&[(5, true)][..], &[(2, false), (4, false)], &[(16, true), (30, true)]] {
        let hurt_disk = disk.image(Survival::None);
        hurt(&hurt_disk, &want.log, entries);
        let work = |disk: &SimDisk| -> Result<(), String> {
            let (mut log, _) = reopen(disk).map_err(|error| error.to_string())?;
            mend(&mut log, &want.log, &mut Rng::new(7)).map(|_| ())
        };
        let whole = hurt_disk.image(Survival::None);
        work(&whole).unwrap();
        for stop in 0..=whole.op_count() {
            let stopped = hurt_disk.image(Survival::None);
            stopped.stop_after(stop);
            let _ = work(&stopped);
            for (number, image) in (0_u64..).zip(stopped.images(24, stop)) {
                let mut rng = Rng::new(stop << 16 | number);
                let result = survive(&image, &want, 0, &mut rng);
                let tally = result.unwrap_or_else(|why| panic!("stop {stop}, {number}: {why}"));
                assert_eq!(tally.forgot, 0, "stop {stop}, image {number}");
                judged += 1;
            }
        }
    }
    println!("{judged} images");
    assert!(judged > 500, "{judged}");
}

#[test]
fn a_power_loss_while_segments_are_moved_aside_forgets_nothing_in_silence() {
    let (disk, want) = original(End::Marked);
    let mut judged = 0;
    for (number, file) in segments(&disk).iter().enumerate() {
        let hurt_disk = disk.image(Survival::None);
        hurt_disk.damage(file, 0, &[0xee; 4096]);
        let whole = hurt_disk.image(Survival::None);
        let (_, found) = reopen(&whole).unwrap();
        assert_eq!(found.quarantined.len(), segments(&disk).len() - number);
        assert_eq!(found.amnesia, Some(want.hard.term));
        assert_eq!(segments(&whole).len(), number);
        for stop in 0..=whole.op_count() {
            let stopped = hurt_disk.image(Survival::None);
            stopped.stop_after(stop);
            let _ = reopen(&stopped);
            for (image, count) in stopped.images(16, stop).zip(0_u64..) {
                let mut rng = Rng::new(stop << 16 | count);
                let result = survive(&image, &want, 0, &mut rng);
                let tally = result.unwrap_or_else(|why| panic!("{file:?}, {stop}: {why}"));
                assert_eq!(tally.forgot, 1, "{file:?}, stop {stop}, image {count}");
                judged += 1;
            }
        }
        // The caller begins anew behind its database.
        let (mut log, found) = reopen(&whole).unwrap();
        let base = LogId { term: Term(4), index: Index(40) };
        log.reset(base, 77).unwrap();
        log.end_amnesia().unwrap();
        drop(log);
        let (log, again) = reopen(&whole.image(Survival::None)).unwrap();
        assert_eq!((again.base, again.last, again.amnesia), (base, base, None));
        assert_eq!(log.hard_state(), found.hard_state);
    }
    println!("{judged} images");
    assert!(judged > 500, "{judged}");
}

#[test]
fn a_missing_segment_is_amnesia() {
    let (disk, want) = original(End::Clean);
    let files = segments(&disk);
    for (number, file) in files.iter().enumerate().skip(1) {
        let image = disk.image(Survival::None);
        image.remove(file).unwrap();
        image.sync_dir(&dir()).unwrap();
        let tally = survive(&image, &want, 0, &mut Rng::new(1)).unwrap();
        assert_eq!((tally.forgot, segments(&image).len()), (1, number), "without {file:?}");
    }
}

#[test]
fn a_mark_proves_what_is_before_it_and_is_written_once() {
    let batches = [append(1, 1, &[3000]), append(2, 1, &[3000])];
    for marked in [false, true] {
        let disk = SimDisk::new(5);
        let mut run = Run::new(Arc::new(disk.clone()), dir(), Driver::Right);
        run.all(&batches).unwrap();
        if marked {
            run.step(&Step::Mark).unwrap();
            let ops = disk.op_count();
            assert!(!run.log().stage_mark() && !run.log().has_staged(), "nothing is left to prove");
            run.step(&Step::Mark).unwrap();
            assert_eq!(disk.op_count(), ops, "an idle node writes nothing");
        }
        let image = disk.image(Survival::None);
        // The second batch begins at 4096 + 3136, its payload 128 bytes later.
        image.damage(&dir().join("0000000000000000.seg"), 7680, &[0; 512]);
        let refused = open(Arc::new(image.image(Survival::None)), &dir());
        assert_eq!(refused.is_err(), marked, "a node alone");
        let (_, found) = reopen(&image).unwrap();
        let damaged = if marked { vec![(Index(2), Index(2))] } else { Vec::new() };
        assert_eq!((found.cut.is_some(), found.damaged), (!marked, damaged));
    }
}

#[test]
fn damage_found_by_the_scrubber_waits_for_a_copy() {
    let (disk, want) = original(End::Marked);
    let (mut log, _) = reopen(&disk).unwrap();
    log.mark_damaged(Index(3), Index(8));
    assert_eq!(log.damaged(), Some((Index(3), Index(8))));
    assert_eq!(log.damaged_from(Index(5)), Some((Index(5), Index(8))));
    assert_eq!(log.damaged_from(Index(9)), None);
    let reader = log.reader();
    assert!(reader.entry(Index(5)).is_none() && reader.frames(Index(3), Index(9), 99).is_none());
    assert_eq!(reader.frames(Index(1), Index(9), 9999).unwrap().1, Index(2));
    assert_eq!(reader.term_at(Index(5)), Some(Term(1)));
    assert_eq!(log.repair(&frames_of(&want.log, 3, 8, true)).unwrap(), 0);
    assert_eq!(log.repair(&frames_of(&want.log, 1, 20, false)).unwrap(), 6);
    assert_eq!(log.damaged(), None);
    assert!(reader.entry(Index(5)).is_some());
}

/// The judge must see what a wrong store would do.
#[test]
fn the_judge_sees_cut_logs_and_believed_strangers() {
    let (disk, want) = original(End::Marked);
    hurt(&disk, &want.log, &[(28, true)]);
    let (log, found) = reopen(&disk).unwrap();
    let good = view(&log, &found);
    assert_eq!(honest(&good, &want.log, 0), Ok(()));
    let cut = View { last: want.log.at(27).unwrap().0, damaged: Vec::new(), ..good.clone() };
    assert!(honest(&cut, &want.log, 8).is_err(), "cut at any damage");
    let mut stranger = View { damaged: Vec::new(), ..good };
    let mut held = want.log.get(28).unwrap().clone();
    held.payload.push(7);
    stranger.entries.insert(28, held);
    assert!(honest(&stranger, &want.log, 0).is_err(), "repaired without looking at the chain");
}

/// A recovery that does not write the tail again, and a driver that believes the cache after
/// a sync that failed.
#[test]
fn the_judge_sees_a_cache_that_was_believed() {
    let mut steps = vec![append(1, 1, &[10, 600]), append(3, 1, &[3000])];
    let before = {
        let disk = SimDisk::new(1);
        Run::new(Arc::new(disk.clone()), dir(), Driver::Right).all(&steps).unwrap();
        disk.sync_count()
    };
    steps.push(Step::Kill { first: 4, term: 1, size: 1500 });
    // The directory and two saves of the hard state come before the tail.
    let (_, wrong) = sweep(&steps, Driver::Right, 12, |disk| disk.lie_at(before + 3));
    assert!(!wrong.is_empty(), "the tail was not synced again");
    let (_, wrong) = sweep(&steps[..2], Driver::Trusting, 12, |disk| disk.fail_at(before - 1));
    assert!(!wrong.is_empty(), "a failed sync was acknowledged");
}
