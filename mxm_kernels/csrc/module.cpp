// The Python module. Tensors come as addresses of contiguous float32, int32 and int64 memory,
// which backends/native vouches for: a DLPack exchange for each of a dozen tensors would
// cost more than the whole sweep of a small batch.

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <iterator>

#include "draw.h"
#include "fused.h"
#include "interrupt.h"
#include "kernels.h"
#include "sigmoid_passes.h"
#include "softmax_passes.h"

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

Problem make_problem(std::int64_t rows, std::int64_t cols, float scale, float teacher_scale,
                     bool has_soft, std::uintptr_t image_groups, std::uintptr_t text_groups,
                     std::uintptr_t image_offsets, std::uintptr_t pair_texts, int threads) {
  Problem p;
  p.rows = rows;
  p.cols = cols;
  p.has_soft = has_soft;
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

Features make_features(std::uintptr_t x, std::uintptr_t y, std::int64_t D,
                       std::uintptr_t teacher_x, std::uintptr_t teacher_y, std::int64_t E) {
  return {at<const std::uint16_t>(x),
          at<const std::uint16_t>(y),
          at<const std::uint16_t>(teacher_x),
          at<const std::uint16_t>(teacher_y),
          D,
          E};
}

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
