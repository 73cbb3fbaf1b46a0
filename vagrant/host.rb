# frozen_string_literal: true

# What this host has for the machines, looked at before anything starts.
module Host
  # What is wrong, and what to do about it.
  class Unfit < Vagrant::Errors::VagrantError
    attr_reader :error_message

    def initialize(reason)
      @error_message = reason
      super()
    end
  end

  # Where libvirt listens: one daemon for all, or one for QEMU.
  SOCKETS = %w[/run/libvirt/libvirt-sock /run/libvirt/virtqemud-sock].freeze
  IMAGES = { "libvirt" => "/var/lib/libvirt/images", "virtualbox" => Dir.home }.freeze

  module_function

  # Refuse `vagrant up` where it would fail halfway, or wait for ever. Sizes are in MiB, of one machine.
  def check(machines:, memory:, disk:)
    refuse(NO_PROVIDER) if provider.nil?
    refuse(MISSING.fetch(provider)) if MISSING.key?(provider) && !usable.include?(provider)
    check_cpu
    named = ARGV & machines
    wanted = (named.empty? ? machines : named).count { |name| !made?(name) }
    check_memory(wanted, memory)
    check_disk(wanted, disk)
  end

  # Whether a machine has what it needs already.
  def made?(name)
    place = ENV.fetch("VAGRANT_DOTFILE_PATH", File.join(__dir__, ".vagrant"))
    File.exist?(File.join(place, "machines", name, provider, "id"))
  end

  # The provider that the command line or the environment names.
  def asked
    ARGV.join(" ")[/--provider[= ](\S+)/, 1] || ENV["VAGRANT_DEFAULT_PROVIDER"]
  end

  # The one that Vagrant is going to take; nil where there is none.
  def provider
    asked || usable.first
  end

  def usable
    @usable ||= [("libvirt" if libvirt?), ("virtualbox" if program?("VBoxManage"))].compact
  end

  def libvirt?
    Gem.loaded_specs.key?("vagrant-libvirt") && SOCKETS.any? { |path| File.writable?(path) }
  end

  # Whether the CPU itself runs guests: a /dev/kvm without the flag does not run every kernel.
  def virtualization?
    return true unless File.exist?("/proc/cpuinfo")

    File.read("/proc/cpuinfo").split.any? { |word| %w[vmx svm].include?(word) }
  end

  def kvm?
    virtualization? && File.writable?("/dev/kvm")
  end

  def check_cpu
    if provider == "virtualbox" && !virtualization?
      refuse("VirtualBox needs a CPU that runs guests, and this one does not#{nested}.")
    elsif provider == "libvirt" && !kvm?
      warn("No KVM here#{nested}: QEMU interprets the machines, which takes ten times as long.")
    end
  end

  def nested
    inside = File.exist?("/proc/cpuinfo") && File.read("/proc/cpuinfo").split.include?("hypervisor")
    inside ? " (it is a virtual machine itself, without nested virtualization)" : ""
  end

  def check_memory(machines, each)
    free = available_memory
    return if free.nil? || free >= machines * each

    refuse("#{free} MB of memory are free, and #{machines} machine(s) of #{each} MB are wanted. " \
           "UNIONFS_MEMORY=512 makes them smaller, `vagrant up node1` starts one.")
  end

  def check_disk(machines, each)
    place = IMAGES.fetch(provider, Dir.home)
    place = File.dirname(place) until File.exist?(place)
    free = available_disk(place)
    return if free.nil? || free >= machines * each

    refuse("#{place}: #{free} MB are free, and #{machines} machine(s) need #{each} MB each.")
  end

  # MiB that can be had; nil where the host does not tell.
  def available_memory
    return unless File.exist?("/proc/meminfo")

    File.read("/proc/meminfo")[/^MemAvailable:\s+(\d+)/, 1].to_i / 1024
  end

  def available_disk(place)
    IO.popen(["df", "-Pk", place], &:read).lines.last.split[-3].to_i / 1024
  rescue Errno::ENOENT
    nil
  end

  def program?(name)
    ENV["PATH"].split(File::PATH_SEPARATOR).any? { |place| File.executable?(File.join(place, name)) }
  end

  def refuse(reason)
    raise Unfit, reason
  end

  LIBVIRT = "the plugin vagrant-libvirt and a running libvirtd that you may use " \
            "(Debian: apt install vagrant-libvirt libvirt-daemon-system rsync; adduser $USER libvirt)"
  MISSING = {
    "libvirt" => "The provider libvirt needs #{LIBVIRT}.",
    "virtualbox" => "The provider virtualbox needs VirtualBox: VBoxManage is not in PATH."
  }.freeze
  NO_PROVIDER = "There is no provider: neither #{LIBVIRT}, nor VirtualBox."
end
