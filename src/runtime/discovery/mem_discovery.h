// Discovery inside one process: for tests and for a process that serves itself. Nothing outside sees it.
//
//   auto store = make_mem_store();
//   auto worker = make_mem_discovery(store);
//   auto client = make_mem_discovery(store);   // sees the worker's records
//
// Ownership: the store lives as long as one of its users. Thread rules: those of Discovery; no call blocks.
#pragma once

#include <memory>

#include "runtime/discovery/discovery.h"

namespace dyn::runtime {

class MemStore;
std::shared_ptr<MemStore> make_mem_store();

// Without a store: the one that all of this process share.
std::unique_ptr<Discovery> make_mem_discovery(std::shared_ptr<MemStore> store = nullptr);

}  // namespace dyn::runtime
