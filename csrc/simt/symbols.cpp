#include "csrc/simt/symbols.h"

#include <cxxabi.h>
#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <stdexcept>
#include <utility>

namespace ssc::simt {
namespace {

struct TlsIndex {  // the ABI's tls_index
  unsigned long module, offset;
};
extern "C" void* __tls_get_addr(TlsIndex*);

struct Function {
  uint64_t address, bytes;
  std::string name;
};

// The library that this code is in, as the loader and the file describe it.
struct Image {
  std::string path;
  uint64_t base = 0, end = 0;
  uint64_t tls_bytes = 0;
  unsigned long tls_module = 0;
  std::vector<SharedVariable> variables;
  std::vector<Function> functions;
};

int find_image(dl_phdr_info* info, size_t, void* result) {
  Image& image = *static_cast<Image*>(result);
  const auto here = reinterpret_cast<uint64_t>(&find_image);
  uint64_t end = 0, tls = 0;
  bool found = false;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const ElfW(Phdr) & header = info->dlpi_phdr[i];
    const uint64_t start = info->dlpi_addr + header.p_vaddr;
    if (header.p_type == PT_TLS) tls = header.p_memsz;
    if (header.p_type != PT_LOAD) continue;
    end = std::max(end, start + header.p_memsz);
    found = found || (here >= start && here < start + header.p_memsz);
  }
  if (!found) return 0;
  image.path = info->dlpi_name[0] == '\0' ? "/proc/self/exe" : info->dlpi_name;
  image.base = info->dlpi_addr;
  image.end = end;
  image.tls_bytes = tls;
  image.tls_module = info->dlpi_tls_modid;
  return 1;
}

std::string demangle(const char* name) {
  int status = 0;
  const std::unique_ptr<char, void (*)(void*)> text(
      abi::__cxa_demangle(name, nullptr, nullptr, &status), std::free);
  return status == 0 ? text.get() : name;
}

// Thread-local variables that are not a kernel's: the compiler's guards for the initialisation of
// others, and those of pybind11 and the standard library.
bool is_foreign(const std::string& mangled, const std::string& name) {
  return mangled.starts_with("_ZGV") || mangled.starts_with("_ZTH") ||
         name.find("pybind11::") != std::string::npos || name.starts_with("std::");
}

void read_symbols(Image& image) {
  const int file = open(image.path.c_str(), O_RDONLY | O_CLOEXEC);
  struct stat status{};
  if (file < 0 || fstat(file, &status) != 0) {
    throw std::runtime_error("csrc/simt cannot read its own file " + image.path);
  }
  const auto bytes = static_cast<size_t>(status.st_size);
  void* memory = mmap(nullptr, bytes, PROT_READ, MAP_PRIVATE, file, 0);
  close(file);
  if (memory == MAP_FAILED) throw std::runtime_error("csrc/simt cannot map " + image.path);
  const auto* start = static_cast<const char*>(memory);
  const auto* header = reinterpret_cast<const ElfW(Ehdr)*>(start);
  const auto* sections = reinterpret_cast<const ElfW(Shdr)*>(start + header->e_shoff);
  for (int s = 0; s < header->e_shnum; ++s) {
    if (sections[s].sh_type != SHT_SYMTAB) continue;
    const auto* symbols = reinterpret_cast<const ElfW(Sym)*>(start + sections[s].sh_offset);
    const char* names = start + sections[sections[s].sh_link].sh_offset;
    for (size_t i = 0; i < sections[s].sh_size / sizeof(ElfW(Sym)); ++i) {
      const ElfW(Sym) & symbol = symbols[i];
      const std::string mangled = names + symbol.st_name;
      const int type = ELF64_ST_TYPE(symbol.st_info);
      if (type == STT_FUNC && symbol.st_size > 0) {
        image.functions.push_back({image.base + symbol.st_value, symbol.st_size, mangled});
      } else if (type == STT_TLS && symbol.st_shndx != SHN_UNDEF && symbol.st_size > 0) {
        const std::string name = demangle(mangled.c_str());
        const bool guard = name.find("ssc_guard_") != std::string::npos;
        const TlsKind kind = is_foreign(mangled, name) ? TlsKind::foreign
                             : guard                   ? TlsKind::guard
                                                       : TlsKind::shared;
        image.variables.push_back({symbol.st_value, symbol.st_size, name, kind});
      }
    }
  }
  munmap(memory, bytes);
  std::ranges::sort(image.variables, {}, &SharedVariable::offset);
  std::ranges::sort(image.functions, {}, &Function::address);
}

const Image& image() {
  static const Image the_image = [] {
    Image image;
    dl_iterate_phdr(find_image, &image);
    read_symbols(image);
    return image;
  }();
  return the_image;
}

std::string kernel_signature(const void* kernel) {
  const auto address = reinterpret_cast<uint64_t>(kernel);
  for (const Function& function : image().functions) {
    if (function.address == address) return demangle(function.name.c_str());
  }
  return "?";
}

// addr2line's answers, for addresses relative to the library's base.
std::map<uint64_t, std::vector<Line>> known_lines;

// Files that stand between a kernel and an instruction: the executor's headers, the wrappers and
// the system's.
bool is_wrapper(const std::string& file) {
  constexpr const char* kWrappers[] = {"csrc/simt/",
                                       "csrc/cuda/device/device.h",
                                       "csrc/cuda/device/mma.h",
                                       "csrc/cuda/device/async_copy.h",
                                       "csrc/cuda/device/fast_math.h",
                                       "csrc/cuda/device/vector_access.h",
                                       "/include/"};
  return std::ranges::any_of(
      kWrappers, [&](const char* part) { return file.find(part) != std::string::npos; });
}

Line parse_line(std::string function, const std::string& place) {
  const size_t colon = place.rfind(':'), start = place.starts_with("./") ? 2 : 0;
  return {place.substr(start, colon - start), std::atoi(place.c_str() + colon + 1),
          std::move(function)};
}

void look_up(const std::vector<uint64_t>& addresses) {
  // Without LD_PRELOAD: the sanitizers' libraries must stay out of addr2line.
  std::string command = "env -u LD_PRELOAD addr2line -e '" + image().path + "' -f -C -i -a";
  for (const uint64_t address : addresses) {
    char text[32];
    std::snprintf(text, sizeof(text), " 0x%llx", static_cast<unsigned long long>(address));
    command += text;
    known_lines[address] = {};
  }
  const std::unique_ptr<FILE, int (*)(FILE*)> pipe(popen((command + " 2>/dev/null").c_str(), "r"),
                                                   pclose);
  if (pipe == nullptr) return;
  char buffer[8192];
  std::vector<Line>* lines = nullptr;
  std::string function;
  while (std::fgets(buffer, sizeof(buffer), pipe.get()) != nullptr) {
    std::string text = buffer;
    if (!text.empty() && text.back() == '\n') text.pop_back();
    if (text.starts_with("0x")) {
      lines = &known_lines[std::stoull(text, nullptr, 16)];
      function.clear();
    } else if (function.empty()) {
      function = text;
    } else if (lines != nullptr) {
      lines->push_back(parse_line(std::exchange(function, {}), text));
    }
  }
}

}  // namespace

void load_lines(const std::vector<uint64_t>& pcs) {
  constexpr size_t kBatch = 500;  // a command line's worth
  std::vector<uint64_t> batch;
  for (const uint64_t pc : pcs) {
    const uint64_t address = pc - 1 - image().base;  // of the call, not of what follows it
    if (!known_lines.contains(address)) batch.push_back(address);
    if (batch.size() == kBatch) look_up(std::exchange(batch, {}));
  }
  if (!batch.empty()) look_up(batch);
}

std::vector<Line> lines_of(uint64_t pc) {
  load_lines({pc});
  return known_lines[pc - 1 - image().base];
}

Line kernel_line_of(uint64_t pc) {
  const std::vector<Line> lines = lines_of(pc);
  for (const Line& line : lines) {
    if (!is_wrapper(line.file)) return line;
  }
  return lines.empty() ? Line{"?", 0, "?"} : lines.front();
}

std::string place_text(uint64_t pc) {
  std::string text;
  for (const Line& line : lines_of(pc)) {
    if (is_wrapper(line.file)) continue;
    if (!text.empty()) text += ", inlined into ";
    text += line.file + ":" + std::to_string(line.line) + " (" + line.function + ")";
  }
  return text.empty() ? "an unknown place" : text;
}

std::string kernel_name(const void* kernel) {
  const std::string signature = kernel_signature(kernel);
  return signature.substr(0, signature.rfind('('));
}

uint64_t static_shared_bytes(const void* kernel) {
  static std::map<const void*, uint64_t> known;
  if (const auto found = known.find(kernel); found != known.end()) return found->second;
  // A template's name has its result in front, those of its variables have not.
  std::string scope = kernel_signature(kernel) + "::";
  if (scope.starts_with("void ")) scope.erase(0, 5);
  uint64_t bytes = 0;
  for (const SharedVariable& variable : shared_variables()) {
    if (variable.kind == TlsKind::shared && variable.name.starts_with(scope)) {
      bytes += variable.bytes;
    }
  }
  return known[kernel] = bytes;
}

const std::vector<SharedVariable>& shared_variables() { return image().variables; }

unsigned char* thread_local_block() {
  TlsIndex index{image().tls_module, 0};
  return static_cast<unsigned char*>(__tls_get_addr(&index));
}

uint64_t thread_local_bytes() { return image().tls_bytes; }

uint32_t image_offset(const void* pc) {
  return static_cast<uint32_t>(reinterpret_cast<uint64_t>(pc) - image().base);
}

const void* image_address(uint32_t offset) {
  return reinterpret_cast<const void*>(image().base + offset);
}

bool in_image(const void* address) {
  const auto a = reinterpret_cast<uint64_t>(address);
  return a >= image().base && a < image().end;
}

}  // namespace ssc::simt
