"""OpenStack Neutron drives weft: the ML2 mechanism driver, the router plugin, and what keeps the controller in step with Neutron."""
