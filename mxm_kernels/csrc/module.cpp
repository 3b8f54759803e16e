// The Python module. Tensors come as addresses of contiguous float32, int32 and int64 memory,
// which backends/native vouches for: a DLPack exchange for each of a dozen tensors would
// cost more than the whole sweep of a small batch.

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <iterator>
#include <utility>

#include "draw.h"
#include "fused.h"
#include "kernels.h"
#include "sigmoid_passes.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace nb = nanobind;

namespace mxm {
namespace {

// Asks for large pages under the pages that lie whole in a workspace. Only advice: a system
// that refuses it gives small pages, each zeroed by a fault of its own.
void advise_large_pages(std::uintptr_t address, std::int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr std::uintptr_t kPage = 4096;
  const std::uintptr_t first = (address + kPage - 1) / kPage * kPage;
  const std::uintptr_t last = (address + bytes) / kPage * kPage;
  if (first < last) madvise(at<void>(first), last - first, MADV_HUGEPAGE);
#else
  static_cast<void>(address);
  static_cast<void>(bytes);
#endif
}

// Lets Python handle a signal, every 20 ms at most: another thread may have to give way for it. True
// where the handler raised an error, which is then Python's current one.
bool interrupted() {
  using Clock = std::chrono::steady_clock;
  thread_local Clock::time_point next;
  const Clock::time_point now = Clock::now();
  if (now < next) return false;
  next = now + std::chrono::milliseconds(20);
  const nb::gil_scoped_acquire python;
  return PyErr_CheckSignals() != 0;
}

// Runs what may take seconds without Python's lock, and raises what interrupted it.
template <class Run>
void interruptible(const Run& run) {
  {
    const nb::gil_scoped_release release;
    run();
  }
  if (PyErr_Occurred() != nullptr) throw nb::python_error();
}

Problem make_problem(std::int64_t rows, std::int64_t cols, float scale, float teacher_scale,
                     bool has_teacher, std::uintptr_t image_groups, std::uintptr_t text_groups,
                     std::uintptr_t image_offsets, std::uintptr_t pair_texts, int threads) {
  Problem p;
  p.rows = rows;
  p.cols = cols;
  p.has_teacher = has_teacher;
  p.scale = scale;
  p.teacher_scale = teacher_scale;
  p.image_groups = at<const std::int32_t>(image_groups);
  p.text_groups.assign(cols + kPad, -1);
  std::copy_n(at<const std::int32_t>(text_groups), cols, p.text_groups.begin());
  p.image_offsets = at<const std::int64_t>(image_offsets);
  p.pair_texts = at<const std::int64_t>(pair_texts);
  p.threads = threads;
  return p;
}

// Adds rules to a problem; `vectors`: offsets, the teacher's, exclude ids, within ids, thresholds of the
// images and then of the texts, 0 for one that is not given.
void tell(Problem& p, const std::vector<std::uintptr_t>& vectors) {
  const Given given{at<const float>(vectors.at(0)), at<const float>(vectors.at(1)),
                    at<const std::int64_t>(vectors.at(2)), at<const std::int64_t>(vectors.at(3)),
                    at<const float>(vectors.at(4))};
  p.told = true;
  p.filters = given.thresholds != nullptr;
  p.removes = p.filters || given.exclude != nullptr || given.within != nullptr;
  read_rules(given, p.rows, p.cols, kPad, p.image_rules, p.text_rules);
}

Tile make_tile(std::uintptr_t student, std::uintptr_t teacher, std::int64_t stride,
               std::int64_t row, std::int64_t rows, std::int64_t col, std::int64_t cols) {
  return {at<const float>(student), at<const float>(teacher), stride, row, col, rows, cols,
          at<float>(student), stride};
}

// What is kept in fixed point of S, or of T: nothing where the address is 0.
Fixed make_fixed(const Problem& p, std::uintptr_t numbers, std::int64_t stride,
                 std::uintptr_t units) {
  if (numbers == 0) return {};
  const float* const rows = at<const float>(units);
  std::vector<float> cols(p.cols + kPad, 0.0f);
  std::copy_n(rows + p.rows, p.cols, cols.begin());
  return {at<const std::int16_t>(numbers), stride, rows, std::move(cols)};
}

Features make_features(std::uintptr_t x, std::uintptr_t y, std::int64_t D,
                       std::uintptr_t teacher_x, std::uintptr_t teacher_y, std::int64_t E) {
  return {at<const std::uint16_t>(x),
          at<const std::uint16_t>(y),
          at<const std::uint16_t>(teacher_x),
          at<const std::uint16_t>(teacher_y),
          D,
          E};
}

class ForwardPass {
 public:
  ForwardPass(const std::string& level, const Problem& problem, std::uintptr_t positives,
              bool diagnostics, bool neg_sum)
      : kernels_(kernels(level)), pass_(problem, at<float>(positives), diagnostics, neg_sum) {}

  // Keeps the products of S, and of T, in fixed point: (M, stride) of 16 bits each, the inverse
  // units of the rows and columns of each, and (P,) T of the positives.
  void keep(std::uintptr_t student, std::uintptr_t teacher, std::int64_t stride,
            std::uintptr_t student_units, std::uintptr_t teacher_units,
            std::uintptr_t teacher_positives) {
    pass_.teacher_positives = at<float>(teacher_positives);
    pass_.student = make_keep(student, stride, student_units);
    pass_.teacher = make_keep(teacher, stride, teacher_units);
  }

  void sweep(const Tile& tile) { kernels_.forward_tile(pass_, tile); }

  void run_fused(const std::string& unit, const Features& features) {
    const Problem& p = pass_.problem;
    pass_.partials.assign(p.threads, pass_.statistics(kChunk));
    interruptible([&] { fused(unit).forward(pass_, features, interrupted); });
  }

  void finish(std::uintptr_t n_rows, std::uintptr_t n_cols, std::uintptr_t u_rows,
              std::uintptr_t u_cols, std::uintptr_t t_rows, std::uintptr_t t_cols) {
    const Problem& p = pass_.problem;
    kernels_.finish(pass_.rows.S, p.scale, at<float>(n_rows), nullptr, p.rows);
    kernels_.finish(pass_.cols.S, p.scale, at<float>(n_cols), nullptr, p.cols);
    if (!p.has_teacher) return;
    const float scale = p.told ? 1 : p.scale;
    kernels_.finish(pass_.rows.T, scale, at<float>(t_rows), at<float>(u_rows), p.rows);
    kernels_.finish(pass_.cols.T, scale, at<float>(t_cols), at<float>(u_cols), p.cols);
  }

  // How many negatives remain, and beside T the log-sum-exp of S over what is removed.
  void finish_removed(std::uintptr_t counts_rows, std::uintptr_t counts_cols,
                      std::uintptr_t e_rows, std::uintptr_t e_cols) {
    const Problem& p = pass_.problem;
    std::copy(pass_.rows.negatives.begin(), pass_.rows.negatives.end(), at<float>(counts_rows));
    std::copy(pass_.cols.negatives.begin(), pass_.cols.negatives.end(), at<float>(counts_cols));
    if (!p.has_teacher) return;
    kernels_.finish(pass_.rows.removed, p.scale, at<float>(e_rows), nullptr, p.rows);
    kernels_.finish(pass_.cols.removed, p.scale, at<float>(e_cols), nullptr, p.cols);
  }

  void finish_sums(std::uintptr_t m_rows, std::uintptr_t m_cols) {
    store_scaled(pass_.rows.neg_sum, at<float>(m_rows));
    store_scaled(pass_.cols.neg_sum, at<float>(m_cols));
  }

  void finish_diagnostics(std::uintptr_t m_rows, std::uintptr_t m_cols, std::uintptr_t h_rows,
                          std::uintptr_t h_cols) {
    store_hardest(pass_.rows.hardest, at<float>(m_rows));
    store_hardest(pass_.cols.hardest, at<float>(m_cols));
    if (!pass_.problem.has_teacher) return;
    store_entropy(pass_.rows.self_weighted, at<float>(h_rows));
    store_entropy(pass_.cols.self_weighted, at<float>(h_cols));
  }

 private:
  Keep make_keep(std::uintptr_t to, std::int64_t stride, std::uintptr_t units) const {
    const float* const rows = at<const float>(units);
    return {at<std::int16_t>(to), stride, rows, units == 0 ? nullptr : rows + pass_.problem.rows};
  }

  void store_scaled(const std::vector<double>& sums, float* to) const {
    const float scale = pass_.problem.told ? 1 : pass_.problem.scale;
    for (const double total : sums) *to++ = static_cast<float>(total * scale);
  }

  static void store_hardest(const std::vector<float>& maxima, float* to) {
    for (const float top : maxima) *to++ = top > kNothing ? top : -INFINITY;
  }

  // t - sum_j softmax_j(T) T, which rounding may take below 0.
  void store_entropy(const Running& self_weighted, float* to) const {
    const float scale = pass_.problem.told ? 1 : pass_.problem.teacher_scale;
    for (std::size_t k = 0; k < self_weighted.top.size(); ++k) {
      const float average = scale * self_weighted.weighted[k] / self_weighted.total[k];
      to[k] = std::max(self_weighted.top[k] + std::log(self_weighted.total[k]) - average, 0.0f);
    }
  }

  const Kernels& kernels_;
  Forward pass_;
};

Side make_side(std::uintptr_t normaliser, std::uintptr_t upstream) {
  Side side;
  side.normaliser = at<const float>(normaliser);
  side.upstream = at<const float>(upstream);
  return side;
}

SumTerm make_sums(std::uintptr_t sums, std::uintptr_t upstream) {
  SumTerm term;
  term.sums = at<const float>(sums);
  term.upstream = at<const float>(upstream);
  return term;
}

class BackwardPass {
 public:
  // `statistics`: n, n', S of the positives, t, t', m, m', e, e'; `upstream`: dn, dn', dS_pos, du, du',
  // dm, dm', de, de'. Those of m are 0 where no sum over the negatives has a gradient, those of e where
  // no sum over removed pairs has one.
  BackwardPass(const std::string& level, const Problem& problem,
               const std::vector<std::uintptr_t>& statistics,
               const std::vector<std::uintptr_t>& upstream, bool offsets)
      : kernels_(kernels(level)) {
    pass_.problem = problem;
    pass_.student.rows = make_side(statistics.at(0), upstream.at(0));
    pass_.student.cols = make_side(statistics.at(1), upstream.at(1));
    pass_.positives = at<const float>(statistics.at(2));
    pass_.dpositives = at<const float>(upstream.at(2));
    pass_.teacher.rows = make_side(statistics.at(3), upstream.at(3));
    pass_.teacher.cols = make_side(statistics.at(4), upstream.at(4));
    pass_.row_sums = make_sums(statistics.at(5), upstream.at(5));
    pass_.col_sums = make_sums(statistics.at(6), upstream.at(6));
    pass_.removed.rows = make_side(statistics.at(7), upstream.at(7));
    pass_.removed.cols = make_side(statistics.at(8), upstream.at(8));
    if (offsets) pass_.want_offsets();
    pass_.unit = ordinary_unit(pass_.size());
    kernels_.prepare(pass_);
  }

  // Writes dS over the student's products, or elsewhere.
  void sweep(const Tile& tile) { kernels_.backward_tile(pass_, tile); }

  // Reads the products from what forward kept in fixed point.
  void read(std::uintptr_t student, std::uintptr_t teacher, std::int64_t stride,
            std::uintptr_t student_units, std::uintptr_t teacher_units,
            std::uintptr_t teacher_positives) {
    pass_.teacher_positives = at<const float>(teacher_positives);
    pass_.kept_student = make_fixed(pass_.problem, student, stride, student_units);
    pass_.kept_teacher = make_fixed(pass_.problem, teacher, stride, teacher_units);
  }

  // Writes dS elsewhere: what is kept stays as it is.
  void sweep_to(std::uintptr_t dS, std::int64_t dS_stride, std::uintptr_t student,
                std::uintptr_t teacher, std::int64_t stride, std::int64_t row, std::int64_t rows,
                std::int64_t col, std::int64_t cols) {
    Tile tile = make_tile(student, teacher, stride, row, rows, col, cols);
    tile.dS = at<float>(dS);
    tile.dS_stride = dS_stride;
    kernels_.backward_tile(pass_, tile);
  }

  void run_fused(const std::string& unit, const Features& features, std::uintptr_t dx,
                 std::uintptr_t dy) {
    const FeatureGradients gradients{at<std::uint16_t>(dx), at<std::uint16_t>(dy)};
    interruptible([&] { fused(unit).backward(pass_, features, gradients, interrupted); });
  }

  double unit() const { return pass_.unit; }
  double dscale() const { return pass_.dscale / pass_.unit; }
  void finish_offsets(std::uintptr_t doffsets) const { pass_.store_offsets(at<float>(doffsets)); }

 private:
  const Kernels& kernels_;
  Backward pass_;
};

// A pass over a tile that comes as numbers.
template <class Pass>
void sweep(Pass& pass, std::uintptr_t student, std::uintptr_t teacher, std::int64_t stride,
           std::int64_t row, std::int64_t rows, std::int64_t col, std::int64_t cols) {
  pass.sweep(make_tile(student, teacher, stride, row, rows, col, cols));
}

void run_drawn_weights(std::int64_t seed, std::uintptr_t offsets, std::int64_t rows,
                       std::int64_t rounds, std::uintptr_t weights, int threads) {
  const DrawnRows drawn{at<const std::int64_t>(offsets), rows, at<float>(weights)};
  interruptible([&] {
    drawn_weights(static_cast<std::uint64_t>(seed), drawn, rounds, threads, interrupted);
  });
}

// `arrays`: n, S, u, parameter, the sums of the negatives, the three weights, the numbers of negatives,
// offsets, 0 for one that there is not; `made`: the losses, their derivatives by n, by S, by the
// parameter and by the sums.
void run_row_losses(const std::string& level, const std::string& formula, float constant,
                    float hard, float soft, float smoothing,
                    const std::vector<std::uintptr_t>& arrays, std::int64_t rows,
                    std::int64_t positives, std::int64_t parameter_stride,
                    const std::vector<std::uintptr_t>& made, int threads) {
  const auto array = [&](std::size_t k) { return at<const float>(arrays.at(k)); };
  const RowList list{rows,     positives, array(0), array(1), array(2),
                     array(3), array(4),  array(5), array(6), array(7), array(8),
                     at<const std::int64_t>(arrays.at(9)),    parameter_stride, threads};
  const auto result = [&](std::size_t k) { return at<float>(made.at(k)); };
  kernels(level).row_losses(list, {formula_of(formula), constant, hard, soft, smoothing},
                            {result(0), result(1), result(2), result(3), result(4)});
}

}  // namespace

NB_MODULE(_native, m) {
  using Release = nb::call_guard<nb::gil_scoped_release>;
  m.attr("CHUNK") = kChunk;
  m.attr("STRIP") = kStrip;
  m.attr("LINE") = kLine;
  m.def("levels", levels);
  m.def("advise_large_pages", advise_large_pages);
  m.def("units", units);
  m.def("exponential", [](const std::string& level, std::uintptr_t from, std::uintptr_t to,
                          std::int64_t length) {
    kernels(level).exponential(at<const float>(from), at<float>(to), length);
  });
  m.def("softplus", [](const std::string& level, std::uintptr_t from, std::uintptr_t to,
                       std::int64_t length) {
    kernels(level).softplus(at<const float>(from), at<float>(to), length);
  });
  m.def("drawn_weights", run_drawn_weights);
  m.attr("FORMULAS") = std::vector<std::string>(std::begin(kFormulas), std::end(kFormulas));
  m.def("row_losses", run_row_losses, Release());
  nb::class_<Problem>(m, "Problem")
      .def_static("make", make_problem, Release())
      .def("tell", tell, Release());
  nb::class_<Features>(m, "Features").def_static("make", make_features);
  nb::class_<ForwardPass>(m, "ForwardPass")
      .def(nb::init<const std::string&, const Problem&, std::uintptr_t, bool, bool>())
      .def("keep", &ForwardPass::keep)
      .def("sweep", sweep<ForwardPass>, Release())
      .def("fused", &ForwardPass::run_fused)
      .def("finish", &ForwardPass::finish, Release())
      .def("finish_sums", &ForwardPass::finish_sums)
      .def("finish_removed", &ForwardPass::finish_removed, Release())
      .def("finish_diagnostics", &ForwardPass::finish_diagnostics, Release());
  nb::class_<BackwardPass>(m, "BackwardPass")
      .def(nb::init<const std::string&, const Problem&, const std::vector<std::uintptr_t>&,
                    const std::vector<std::uintptr_t>&, bool>(),
           Release())
      .def("sweep", sweep<BackwardPass>, Release())
      .def("read", &BackwardPass::read)
      .def("sweep_to", &BackwardPass::sweep_to, Release())
      .def("fused", &BackwardPass::run_fused)
      .def("finish_offsets", &BackwardPass::finish_offsets, Release())
      .def_prop_ro("unit", &BackwardPass::unit)
      .def_prop_ro("dscale", &BackwardPass::dscale);
  nb::class_<SigmoidForwardPass>(m, "SigmoidForwardPass")
      .def(nb::init<const std::string&, const Problem&, float, std::uintptr_t>())
      .def("sweep", sweep<SigmoidForwardPass>, Release())
      .def("finish", &SigmoidForwardPass::finish, Release());
  nb::class_<SigmoidBackwardPass>(m, "SigmoidBackwardPass")
      .def(nb::init<const std::string&, const Problem&, float, std::uintptr_t,
                    const std::vector<std::uintptr_t>&, bool>(),
           Release())
      .def("sweep", sweep<SigmoidBackwardPass>, Release())
      .def("finish_offsets", &SigmoidBackwardPass::finish_offsets, Release())
      .def_prop_ro("unit", &SigmoidBackwardPass::unit)
      .def_prop_ro("dscale", &SigmoidBackwardPass::dscale)
      .def_prop_ro("dbias", &SigmoidBackwardPass::dbias);
  nb::class_<SigmoidLossPass>(m, "SigmoidLossPass")
      .def(nb::init<const std::string&, const Problem&, float, std::uintptr_t,
                    const std::vector<std::uintptr_t>&, bool>(),
           Release())
      .def("sweep", sweep<SigmoidLossPass>, Release())
      .def("finish_offsets", &SigmoidLossPass::finish_offsets, Release())
      .def_prop_ro("loss", &SigmoidLossPass::loss)
      .def_prop_ro("unit", &SigmoidLossPass::unit)
      .def_prop_ro("dscale", &SigmoidLossPass::dscale)
      .def_prop_ro("dbias", &SigmoidLossPass::dbias);
}

}  // namespace mxm
