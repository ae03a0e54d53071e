"""What the GPU benchmark says: its table, its picture, and the figures that people ask for first."""

HEADER = """\
us: a call's median time in microseconds, in a CUDA graph where that works; spread: 10th to 90th percentile; launched:
the same from Python. floor: what the card needs at the least, max(bytes / bandwidth, operations / rate), in percent of
us: 100 is perfect. ratio: the time of torch's best alternative / ours: above 1, ours is faster."""


def conclude(results):
    """Say which rows are not to be trusted; the exit code."""
    wrong = [r["name"] for r in results if not r["agrees"] or r["microseconds"] is None]
    print(f"Ours failed, or does not agree with torch: {', '.join(wrong)}." if wrong else
          f"All {len(results)} agree with torch, within the rule at the top of benchmark_gpu.py.")
    return 1 if wrong else 0


def print_head(facts):
    """What the machine is and can do, and the columns."""
    machine, floors, launch = facts["machine"], facts["floors"], facts["floors"]["launch_microseconds"]
    print(f"{machine['card'] or 'No GPU'}, {facts['dtype']}, torch {machine['torch']}, triton {machine['triton']}")
    if facts["note"]:
        print(f"*** {facts['note']} ***")
    else:
        rates = ", ".join(f"{rate / 1e12:.1f} TFLOP/s in {dtype}"
                          for dtype, rate in floors["matrix_operations_per_second"].items())
        print(f"It copies {floors['copy_bytes_per_second'] / 1e12:.2f} TB/s and multiplies {rates}.\n"
              f"A launch takes {', '.join(f'{us:.1f} us ({name})' for name, us in launch.items())}.")
    print(f"{HEADER}\n\n{'':34}{'us':>9}{'spread':>19}{'launched':>10}{'floor':>7}{'ratio':>7}   torch, us", flush=True)


def us(value):
    return "-" if value is None else f"{value:.{0 if value >= 10_000 else 1}f}"


def print_row(r):
    """A line of the table, and below it what is not as it should be."""
    share, ratio, launched = r.get("percent_of_floor"), r.get("ratio"), r.get("launched_microseconds", {}).get("ours")
    spread = " to ".join(map(us, r.get("spread") or [None]))
    print(f"{r['name']:34}{us(r['microseconds']):>9}{spread:>19}{us(launched):>10}"
          f"{'-' if share is None else f'{share:.0f}%':>7}{'-' if ratio is None else f'{ratio:.2f}':>7}   "
          + "  ".join(f"{name} {us(value)}" for name, value in r.get("torch", {}).items()), flush=True)
    if r["agrees"] is False:
        off = "not finite" if r["error"] is None else f"off by {r['error']:.1e} of the largest entry"
        print(f"    DISAGREES with torch eager: {off}, allowed is {r['allowed_error']:.1e}")
    for name, speed in r.get("tokens_per_second", {}).items():
        peak = r.get("peak_memory_bytes", {}).get(name)
        print(f"    {name:30}{us(us_of(r, name)):>9}{speed:>14,.0f} tokens/s, Python busy for "
              f"{us(r['host_microseconds'][name])} us" + (f", peak memory {peak / 1e9:.1f} GB" if peak else ""))
    for name, reason in r["reasons"].items():
        print(f"    {name}: {reason}")


def us_of(r, name):
    """The time of one of a row's calls."""
    return r["microseconds"] if name == "ours" else {**r["torch"], **r["also"]}[name]


def headline(results, extra=()):
    """What people ask for first, each figure once, by name; None where it was not measured, or means nothing.

    Every ratio is torch's time / ours, of the better one where torch has two; above 1, ours is faster.
    """
    step = next((r for r in results if r["job"] == "training_step"), {})
    ours, theirs = peaks(step)
    figures = {"step": step.get("name"), "step_ratio_vs_torch_compile": compiled_ratio(step),
               "step_tokens_per_second": speed(step), "step_percent_of_floor": step.get("percent_of_floor"),
               "step_peak_memory_vs_torch_compile": ours / min(theirs) if ours and theirs else None}
    for r in results:
        if r["job"] == "next_token" and "batch" in r:
            name = "_int8" * (r["weights"] == "int8") + f"_batch_{r['batch']}" * (r["batch"] > 1)
            figures |= {f"decode_ratio_vs_compiled{name}": compiled_ratio(r),
                        f"decode_tokens_per_second{name}": speed(r),
                        f"decode_percent_of_floor{name}": r["percent_of_floor"]}
    others = [r for r in results if r["job"] in ("training_step", "bert_step", "lstm_step", "seq2seq_step")]
    kernels = [r for r in results if r.get("agrees") and "tokens_per_second" not in r]
    return {**figures, "other_steps": {r["name"]: {"ratio_vs_torch_compile": compiled_ratio(r),
                                                   "tokens_per_second": speed(r)} for r in others if r is not step},
            **dict(extra), "kernels": {r["name"]: {key: r[key] for key in ("ratio", "percent_of_floor")}
                                       for r in kernels}}


def speed(r):
    """Our tokens a second in a row; None if there are none, they mean nothing, or we do not agree with torch."""
    known = r.get("agrees") and r.get("percent_of_floor") is not None
    return r.get("tokens_per_second", {}).get("ours") if known else None


def peaks(r):
    """Peak memory in a row: ours, and a list of torch's."""
    found = r.get("peak_memory_bytes", {})
    return found.get("ours"), [found[name] for name in r.get("torch", {}) if name in found]


def compiled_ratio(r):
    """A row's ratio, if torch was compiled for it and both agree."""
    return r.get("ratio") if r.get("agrees") and "eager" not in r["torch"] else None


def picture(facts, rows):
    """Bars: how near each row comes to its floor, and how much faster than torch's best it is."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(12, 1.6 + 0.24 * len(rows)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, key, form, label in (
            (left, "percent_of_floor", "{:.0f}", "percent of what the card can do (floor / time)"),
            (right, "ratio", "{:.2f}", "time of torch's best / ours (above 1: ours is faster)")):
        values = [r.get(key) or 0 for r in rows]
        bars = axes.barh(range(len(rows)), values, height=0.7, color="#4c72b0" if axes is left else "#55a868")
        axes.bar_label(bars, [form.format(v) if v else "-" for v in values], padding=3, fontsize=8)
        axes.set(xlabel=label, xlim=(0, 1.12 * max(values + [100 if axes is left else 1])))
        axes.axvline(100 if axes is left else 1, color="gray", linestyle="--", linewidth=1)
    left.set(yticks=range(len(rows)), yticklabels=[r["name"] for r in rows], ylim=(len(rows) - 0.4, -0.6))
    machine = facts["machine"]
    figure.suptitle(f"{machine['card'] or 'no GPU'}, {facts['dtype']}, torch {machine['torch']}, triton "
                    f"{machine['triton']}" + (f"\n{facts['note']}" if facts["note"] else ""))
    return figure
