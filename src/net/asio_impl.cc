// The compiled half of Boost.Asio. Everything that includes Asio is built with BOOST_ASIO_SEPARATE_COMPILATION (it
// comes with the dyn_net target), so that this code is compiled once and not in each translation unit.
#include <boost/asio/impl/src.hpp>
