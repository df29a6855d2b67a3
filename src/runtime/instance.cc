#include "runtime/instance.h"

#include "wire/records.h"

namespace dyn::runtime {

Record instance_record(const EndpointId& endpoint, const Transport& transport, uint64_t instance_id,
                       const InstanceTraits& traits) {
  const wire::InstanceRecord record{.ns = endpoint.ns,
                                    .component = endpoint.component,
                                    .endpoint = endpoint.name,
                                    .instance_id = instance_id,
                                    .transport_kind = transport.kind,
                                    .transport_address = transport.address,
                                    .device_type = traits.device_type,
                                    .request_plane_codec = traits.codec};
  return {kInstancesBucket, wire::instance_key(endpoint.ns, endpoint.component, endpoint.name, instance_id),
          wire::encode_instance_record(record)};
}

std::string to_string(const EndpointId& id) {
  return id.ns + "." + id.component + "." + id.name;
}

}  // namespace dyn::runtime
